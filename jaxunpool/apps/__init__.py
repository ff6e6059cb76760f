"""What `python -m jaxunpool` runs, besides `jaxunpool.training`."""
