"""Engine: what a driver does with an actor group, whether it launched it or connected."""
