"""Planning: the problem, the placement, the plan, the schedule, the programs, what they cost."""
