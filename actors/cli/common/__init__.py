"""What commands share: options, output, a running engine."""
