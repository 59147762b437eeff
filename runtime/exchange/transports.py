"""The transports by name, and what decides which is chosen; actors/engine/transports has them."""

# Whether executors share the exchange's memory, which a GPU, the driver's KV memory, poison and
# plans replaced between tokens all need.
SHARES_MEMORY = {"native": True, "ray": False}
