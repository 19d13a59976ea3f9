"""Multiruns: jobs in processes and on clusters."""
