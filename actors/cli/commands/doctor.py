"""`hotcold doctor`: a table of what this machine offers, and how to fix what is badly set."""

import importlib.util
import os
from dataclasses import asdict

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import debug_option, json_option


@click.command("doctor")
@json_option
@debug_option
def command() -> int:
    """Look at this machine and say what hotcold can use, what slows it down, and what to do.

    The exit code is 1 only if hotcold cannot run at all. Changes nothing.
    """
    from hotcold.runtime.doctor.doctor import examine
    from hotcold.runtime.doctor.ray_probe import noted_address

    checks = examine()
    if noted_address(os.environ)[0] and importlib.util.find_spec("ray"):
        from hotcold.actors.cluster.clusters import noted_cluster

        checks = [*checks, noted_cluster()]
    rows = [(check.name, check.state, output.one_line(check.found)) for check in checks]
    click.echo(output.table(("what", "state", "found"), rows))
    mends = [check for check in checks if check.mend]
    if mends:
        click.echo()
        advice = [(check.name, output.one_line(check.mend)) for check in mends]
        click.echo(output.table(("what", "what to do"), advice))
    usable = all(check.state != "fail" for check in checks)
    output.emit_json({"usable": usable, "checks": [asdict(check) for check in checks]})
    return 0 if usable else 1
