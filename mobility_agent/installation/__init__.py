"""Installing the agent on its server from the installer's program tree, replacing it by another version, and removing it without a trace.

Called by ``installation_commands``. ``places`` says what lies where; ``install``, ``upgrade`` and ``uninstall`` are one operation each, all
of them repeatable. What systemd needs is put in place by the same ``install.sh`` that a clone uses. Debian packages do without this room.
"""
