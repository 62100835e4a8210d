"""In which order the operators' pages are walked, and what stands for their placeholders: data for ``walked_pages.py``.

Called by ``tests/packages`` and ``tests/test_documented_commands.py``. One machine is the sink, the appliance and every server, so the sink
has another port (as the page says of such a site).
"""

from __future__ import annotations

from typing import Final

from tests.harness.pushed_agent import CUT_CONNECTION, PLACE
from tests.harness.walked_pages import Stop

ADDRESSES: Final = {
    "10.1.2.1": "appliance.example.internal sink.example.internal",
    "10.1.2.10": "web-1",
    "10.1.2.11": "web-2",
    "10.1.2.12": "db.example",
}
"""All of the machine's own."""
ACCEPT: Final = "--accept-new-host-keys"
KEY: Final = "--key-file ~/.ssh/id_ed25519"
SINK: Final = {"sink.example.internal/": "sink.example.internal:10443/"}
FINGERPRINT: Final = {"FINGERPRINT": '"$(cat /root/fingerprint)"'}
PROCESS_SERVER: Final = "appliance.example.internal:9443"
_ID: Final = 'sed -n \'s/^ *"id": "\\(.*\\)",/\\1/p\' | head -n 1'
_NEWEST_INSTALLATION: Final = f'"$(migratectl installations --json | {_ID})"'
_PROCESS_SERVER_ID: Final = f'"$(migratectl process-servers --json | {_ID})"'


APPLIANCE: Final = (
    Stop("install", "1. Programs", instead={"./blockferry-": "/root/packages/blockferry-"}),
    Stop("install", "2. The sink's key and identity", instead={"0.0.0.0:443": "0.0.0.0:10443"}),
    Stop(
        "install",
        "3. Configuration server",
        numbers=(0,),
        instead=SINK,
        after="mv /var/lib/blockferry/config-server/for-sink /etc/blockferry/sink-tls",
    ),
    Stop(
        "install",
        "3. Configuration server",
        numbers=(1, 2),
        after="as config-server show-fingerprint > /root/fingerprint",
    ),
    Stop(
        "install",
        "4. Process server",
        instead={
            **SINK,
            "300 GB": "1 GiB",
            "internal\nstore:": "internal\n  heartbeat_interval_s: 1 s  # orders come with the answers\nstore:",
        },
    ),
)
"""From nothing to a site that waits for its first server."""

AGENT_BY_HAND: Final = (
    Stop("install", "5. Agent, on each server", numbers=(0,)),
    Stop(
        "install",
        "5. Agent, on each server",
        numbers=(1,),
        before="umask 077; migratectl create-enrolment-passphrase > /root/passphrase",
        # On a terminal it asks for the passphrase.
        instead={
            "sh blockferry": "sh /var/tmp/blockferry",
            **FINGERPRINT,
            "install --": "install --unattended --passphrase-file /root/passphrase --",
        },
    ),
    Stop("install", "5. Agent, on each server", numbers=(2,)),
)

DISCOVERY: Final = (
    Stop("discover", "Host keys"),
    Stop(
        "discover",
        "Discovering servers",
        # There is no terminal on which to say yes.
        instead={KEY: f"{KEY} {ACCEPT}", "--password-file -": f"--password-file - {ACCEPT}"},
        given={"migratectl discover 10.1.2.10-": "the password of root\n"},
        before="printf 'address,port,user,host_key\\nweb-1,,root,\\n10.1.2.10,2222,root,\\n' > servers.csv",
    ),
)

BROKEN_OFF_PUSH: Final = (
    Stop(
        "push-installation",
        "Installing the agent over SSH",
        numbers=(1,),
        before="(umask 077; echo 'the password of admin' > sudo-password)",
        instead={"INSTALLATION": _NEWEST_INSTALLATION, "/dev/sda": '"$(findmnt --noheadings --output SOURCE /srv)"'},
        given={"migratectl protect web-2": "the password of admin\n"},
    ),
)

PUSH: Final = (
    Stop(
        "push-installation",
        "Installing the agent over SSH",
        numbers=(0,),
        # And its connection is cut once, half way through the copy.
        before=f"cat > cut-connection <<'END'\n{CUT_CONNECTION}\nEND\nsetsid sh -eu cut-connection > cut 2>&1 < /dev/null &",
        after=f"grep -qx cut cut; [ ! -e {PLACE} ]; migratectl create-recovery-point web-1 --wait",
    ),
)

UNPROTECTED: Final = (
    Stop("install", "5. Agent, on each server", numbers=(2,)),
    Stop(
        "sizing",
        "Before anything is replicated",
        before="migratectl stop-replication web-1 --yes --wait",
        instead={"24h": "10s"},
    ),
    Stop(
        "protect", "Protecting a server", instead={KEY: f"{KEY} {ACCEPT}"}, endless=("migratectl status web-1 --watch",)
    ),
)
"""The agent is there. What it measures, it measures of disks that are not replicated."""

PROTECTED: Final = (
    Stop("sizing", "Sizing and planning: machines, bandwidth, time"),
    Stop("throttle", "Throttle: how much goes to the store", instead={"ps-1": PROCESS_SERVER}),
    Stop("monitoring", "From the command line", exits={"migratectl health": (0, 10, 11)}),
    Stop(
        "access",
        "The first administrator",
        instead={**FINGERPRINT, "--token-file FILE": "--token-file /root/blockferry-token"},
    ),
    Stop("scale-out", "Scale out: several process servers"),
    Stop("recover-from-failures", "Recover from failures", instead={"SERVER  ": "web-1  "}),
    Stop("process-server", "Spool full"),
    Stop(
        "process-server",
        "Moving the spool",
        before="mkdir -p /mnt/larger/process-server",
        after="rm -r /mnt/larger",
    ),
    Stop(
        "recover-from-failures",
        "Process server gone with its spool",
        before="systemctl stop blockferry-process-server; rm -r /var/lib/blockferry/process-server/{identity,spool}",
        instead={"reenrolment ID": f"reenrolment {_PROCESS_SERVER_ID}", **FINGERPRINT},
        after="migratectl create-recovery-point web-1 --wait",
    ),
    Stop("backup", "Backing up"),
    Stop(
        "configuration-server",
        "Installers",
        before="for file in authority.pem index.json index.json.sig blockferry-agent-0.1.0-x86_64.run; do "
        'curl --silent --fail --insecure --remote-name "https://appliance.example.internal/downloads/$file"; done',
    ),
    Stop(
        "certificates",
        "The sink's",
        numbers=(0,),
        before="cp -r /etc/blockferry/sink-tls /root/sink-tls",
        after="rm -r /root/sink-tls; mv /var/lib/blockferry/config-server/for-sink /root/for-sink",
    ),
    Stop(
        "certificates",
        "The sink's",
        numbers=(1,),
        # A sink that does not take it in 30 s takes it at its restart; that it takes it without is tested with its clock.
        after="cmp /root/for-sink/certificate.pem /etc/blockferry/sink-tls/certificate.pem; rm -r /root/for-sink; "
        "systemctl restart blockferry-azure-sink; migratectl create-recovery-point web-1 --wait",
    ),
    Stop("test-migration", "Test migration", instead=SINK),
)

_AZURE: Final = {"ACCOUNT.blob.core.windows.net": "labaccount.blob.core.windows.net:10444", "ACCOUNT": "labaccount"}
ANOTHER_ACCOUNT: Final = (
    Stop(
        "azure-storage",
        "Moving a site",
        numbers=(0,),
        # It plays the account in Azure: its name in front of Azure's domain, and a certificate that the system's authorities vouch for.
        before="""
head -c 64 /dev/urandom | base64 -w0 > account.key
echo '10.1.2.1 labaccount.blob.core.windows.net' >> /etc/hosts
as config-server issue-certificate --dns labaccount.blob.core.windows.net --out /var/lib/blockferry/config-server/for-azure
mv /var/lib/blockferry/config-server/for-azure account-tls
install -D /etc/blockferry/authorities.pem /etc/ssl/certs/ca-certificates.crt
systemd-run --quiet --unit=account-in-azure azure-sink blob --listen 10.1.2.1:10444 --account labaccount --key-file /root/account.key \
    --state /var/lib/account-in-azure --tls-cert /root/account-tls/certificate.pem --tls-key /root/account-tls/key.pem \
    --observability 127.0.0.1:9889
""",
        instead={"cat >": "cat account.key >"},
    ),
    Stop("azure-storage", "Moving a site", numbers=(1,)),
    Stop(
        "azure-storage",
        "Moving a site",
        numbers=(2,),
        before="cd /etc/blockferry; sed -i -e 's|url: https://sink.*|url: https://labaccount.blob.core.windows.net:10444|' "
        "-e 's|account: blockferry|account: labaccount|' -e 's|store.key|azure.key|' -e '/ca_file:/d' "
        "config-server.yaml process-server.yaml",
        instead=_AZURE,
    ),
    Stop("azure-storage", "Moving a site", numbers=(3,)),
)

MIGRATION: Final = (
    Stop("migration", "Migration", numbers=(0,), before="umount /srv"),
    Stop(
        "replica-writer",
        "`azure-sink export`",
        # The site has been moved to another account by then.
        instead={
            "https://sink.example.internal/blockferry": "https://labaccount.blob.core.windows.net:10444",
            "--account blockferry": "--account labaccount",
            "store.key": "azure.key",
            "--ca-file /etc/blockferry/authorities.pem": "",
        },
    ),
    # Nobody is there who could be asked whether it is meant.
    Stop("migration", "Migration", numbers=(1,), instead={"--wait": "--wait --yes"}),
)
"""The disk is compared after it."""

AFTERWARDS: Final = (
    Stop("install", "A newer version"),
    Stop("install", "Remove an agent", numbers=(0,), instead={"--purge": "--purge --yes"}),
    Stop(
        "install",
        "5. Agent, on each server",
        numbers=(3,),
        before='dpkg --install /root/agent-package/*.deb; migratectl servers allow-reenrolment "$(cat /root/agent-id)"; '
        "(umask 077; migratectl create-enrolment-passphrase > /root/passphrase)",
        instead={**FINGERPRINT, "--passphrase-file -": "--passphrase-file - < /root/passphrase"},
        after="systemctl is-active blockferry-agent; dpkg --purge blockferry-agent",
    ),
    Stop("certificates", "Revocation", instead={"--holder web-1": '--yes --holder "$(cat /root/agent-id)"'}),
    Stop("scale-out", "Drain and remove", numbers=(0,), instead={"PROCESS_SERVER": PROCESS_SERVER}),
    Stop("scale-out", "Drain and remove", numbers=(1,), instead={"PROCESS_SERVER": PROCESS_SERVER}),
)

PLANS: Final = {
    "APPLIANCE": APPLIANCE,
    "AGENT_BY_HAND": AGENT_BY_HAND,
    "DISCOVERY": DISCOVERY,
    "BROKEN_OFF_PUSH": BROKEN_OFF_PUSH,
    "PUSH": PUSH,
    "UNPROTECTED": UNPROTECTED,
    "PROTECTED": PROTECTED,
    "ANOTHER_ACCOUNT": ANOTHER_ACCOUNT,
    "MIGRATION": MIGRATION,
    "AFTERWARDS": AFTERWARDS,
}
