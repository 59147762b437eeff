"""What happened when: spans, phases and timelines of passes."""
