"""Ray itself: joining or starting a cluster, its processes, what they leave behind."""
