"""Boards that are not there: an OpenSSH server on this machine's loopback, behind it this machine or an ARM one.

The ARM one is a root folder of its own with nothing but busybox for arm64, which qemu-user runs: the kernel starts it
through binfmt_misc, in a user namespace, so nothing of the machine is changed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
APPLETS = "sh id uname cat sed cut tr grep head tail mkdir rm mv wc chmod stty printf md5sum sha256sum test [ sleep"
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
CPUINFO = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics asimdrdm asimddp\n" \
          "CPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"  # fmt: skip
# The services of this machine are none of the tests' business: the user is not root, and has no service manager.
OWN = {"id": "#!/bin/sh\necho 1000\n", "systemctl": "#!/bin/sh\nexit 1\n", "loginctl": "#!/bin/sh\n"}
ENTER = """set -e
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf '%s' ':arm:M::{magic}:{mask}:{qemu}:FP' > /proc/sys/fs/binfmt_misc/register
mount --rbind /proc {root}/proc
mount --bind {root}/cpuinfo {root}/proc/cpuinfo
for device in null zero urandom; do mount --bind /dev/$device {root}/dev/$device; done
for part in lib lib64 usr/lib; do [ -d /$part ] && mount --bind /$part {root}/$part; done
export HOME=/home PATH=/bin
exec {chroot} {root} /bin/sh -c 'cd /home; eval "$1"' sh "$1"
"""


def apt_busybox(folder: Path) -> Path:
    """Debian's static busybox for arm64, through apt with lists of its own; it is kept in build/."""
    kept = Path(__file__).resolve().parents[2] / "build" / "cache" / "busybox-arm64"
    if kept.exists():
        return kept
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip("no busybox for arm64: there is no apt-get here")
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    own = ["-qq", "-o", "APT::Architectures::=arm64", "-o", f"Dir::State::Lists={folder}/lists",
           "-o", f"Dir::Cache={folder}/cache", "-o", "APT::Sandbox::User=root"]  # fmt: skip
    for words in (["update"], ["download", "busybox-static:arm64"]):
        done = subprocess.run(["apt-get", *own, *words], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no busybox for arm64: apt-get {words[0]} fails: {done.stderr.strip()[-200:]}")
    (package,) = folder.glob("busybox-static_*_arm64.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder / "unpacked"], check=True)
    busybox = next(p for p in (folder / "unpacked").rglob("busybox") if p.is_file() and os.access(p, os.X_OK))
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(busybox, folder / "busybox")
    os.replace(folder / "busybox", kept)
    return kept


def arm_root(folder: Path, busybox: Path) -> list[str]:
    """The command that runs a shell's script in an emulated ARM root; its home is folder/root/home."""
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if qemu is None:
        pytest.skip("there is no qemu-aarch64 here; install qemu-user")
    chroot = shutil.which("chroot", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    probe = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc && test -e /proc/sys/fs/binfmt_misc/register"
    if subprocess.run(["unshare", "-Urm", "sh", "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip("this kernel has no binfmt_misc in user namespaces (Linux 6.7), so there is no emulated ARM root")
    root = folder / "root"
    for part in ("bin", "proc", "dev", "home", "tmp", "lib", "lib64", "usr/lib", "etc"):
        (root / part).mkdir(parents=True)
    for device in ("null", "zero", "urandom"):
        (root / "dev" / device).touch()
    shutil.copy(busybox, root / "bin" / "busybox")
    for name in APPLETS.split():
        (root / "bin" / name).symlink_to("busybox")
    (root / "cpuinfo").write_text(CPUINFO)
    script = folder / "enter.sh"
    script.write_text(ENTER.format(magic=MAGIC, mask=MASK, qemu=qemu, root=root, chroot=chroot))
    return ["unshare", "-Urm", "sh", str(script)]


class Sshd:
    """A user's OpenSSH server with keys of its own, and an `ssh` on PATH whose settings know it as the host board."""

    def __init__(self, folder: Path, home: Path, enter: list[str] | None = None) -> None:
        if SSHD is None:
            pytest.skip("there is no sshd here; install openssh-server")
        if shutil.which("ssh") is None:
            pytest.skip("there is no ssh here; install openssh-client")
        folder.mkdir()
        folder.chmod(0o700)
        self.folder, self.home = folder, home
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        for name in ("host", "user", "other"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        inside = " ".join(enter) + ' "$SSH_ORIGINAL_COMMAND"' if enter else 'sh -c "$SSH_ORIGINAL_COMMAND"'
        (home / "bin").mkdir(exist_ok=True)
        for name, text in OWN.items():
            (home / "bin" / name).write_text(text)
            (home / "bin" / name).chmod(0o755)
        path = f"export HOME={home} PATH={home}/bin:$PATH"
        (folder / "far").write_text(f"#!/bin/sh\n{path}\ncd {home} && exec {inside}\n")
        (folder / "far").chmod(0o755)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
            f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nMaxSessions 100\n"
            f"ForceCommand {folder}/far\n"
        )
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {(folder / 'host.pub').read_text()}")
        (folder / "config").write_text(
            f"Host board\n HostName 127.0.0.1\n Port {self.port}\n IdentityFile {folder}/user\n IdentitiesOnly yes\n"
            f" UserKnownHostsFile {folder}/known\n StrictHostKeyChecking yes\n"
        )
        (folder / "bin").mkdir()
        (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
        (folder / "bin" / "ssh").chmod(0o755)
        self.path = f"{folder}/bin:{os.environ['PATH']}"
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((folder / "log").read_text())

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
