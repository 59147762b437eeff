"""The exchange: one shared segment of flags and payloads, and its layout."""
