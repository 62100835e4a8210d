"""Builds what is installed: the agent's installer, one file for any Linux with glibc, and the Debian packages.

Called by ``make installers`` (``python -m deploy.packaging``) and by the tests that install the results. Reads top-down: ``__main__``,
``program_tree``, ``agent_installer`` and ``debian_packages``. Why so and not otherwise: docs/decisions/0019-installers.md.
"""
