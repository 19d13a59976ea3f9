"""`python -m hdmnet train …`: the console command without its installation."""

from hdmnet.cli.main import main

raise SystemExit(main())
