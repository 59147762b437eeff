"""`hotcold bench`: one subcommand a measurement.

Options and printing only; `hotcold.runtime.bench` and `hotcold.actors.bench` measure.

May import: actors, actors.bench, actors.cli.common, actors.cluster, actors.serve, native,
    runtime.*
"""
