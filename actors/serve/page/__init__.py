"""The page of `hotcold serve`: a chat, and beside it what the engine does.

Static files without a build step or a foreign address, and /live, a stream of what telemetry tells.
`add_page` mounts both.

May import: actors.cluster, actors.telemetry, native, runtime.engine, runtime.telemetry
"""

from hotcold.actors.serve.page.routes import add_page

__all__ = ["add_page"]
