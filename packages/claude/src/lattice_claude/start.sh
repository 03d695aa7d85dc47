#!/bin/sh
# Started by the Claude Agent SDK in the CLI's place: executes the words of LATTICE_CLAUDE_COMMAND, which
# end with the CLI, and hands on the arguments. The SDK can name one file only (adapter.py).
eval "set -- $LATTICE_CLAUDE_COMMAND \"\$@\""
unset LATTICE_CLAUDE_COMMAND
exec "$@"
