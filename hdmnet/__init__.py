"""Few-shot semantic segmentation: methods, trunks and data sets on the same episodes."""

__version__ = "0.2.0"
__all__ = ["Segmenter", "__version__"]

TYPE_CHECKING = False  # as in `typing`, which `import hdmnet` need not load
if TYPE_CHECKING:
    from hdmnet.apps.segmenter import Segmenter


def __getattr__(name: str) -> object:
    """Import what needs PyTorch when it is first asked for: the entry points' `--help` does not wait for it."""
    if name != "Segmenter":
        raise AttributeError(f"module 'hdmnet' has no attribute {name!r}")
    from hdmnet.apps.segmenter import Segmenter

    return Segmenter
