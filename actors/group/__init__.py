"""The actors of one engine as a group: launch, watch, replace, end."""
