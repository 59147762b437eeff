"""The engine: a deployment is prepared, made, and run by executors in this process."""
