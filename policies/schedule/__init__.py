"""Built-in schedule policies, one a file: a Dag, a Plan and a HardwareProfile become a Schedule.

May import: native, runtime.hardware, runtime.plan
"""
