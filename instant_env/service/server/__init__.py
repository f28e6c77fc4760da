"""The service as a process: store, engine and web put together, and the files by which clients find it."""
