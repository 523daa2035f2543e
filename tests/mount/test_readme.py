"""The README's section for administrators, run as it stands: every command must succeed, in the order of the text."""
import os
import re
import subprocess

from conftest import AK, BUILD, SK, environment

README = os.path.join(os.path.dirname(__file__), "..", "..", "README.md")
SECTION = "## The administrator's day"

PRELUDE = """
set -e
customer() {{ aws --endpoint-url {endpoint} --region us-east-1 "$@"; }}
"""


def blocks():
    """(title, commands) of each indented block; the title is the bold word of its paragraph."""
    with open(README) as f:
        text = f.read().split(SECTION, 1)[1].split("\n## ", 1)[0]
    found, title = [], None
    for part in re.split(r"\n\n+", text):
        bold = re.match(r"\*\*(.+?)\.\*\*", part)
        title = bold.group(1) if bold else title
        if part.startswith("    "):
            found.append((title, re.sub("^    ", "", part, flags=re.M)))
    return found


def test_the_section_has_every_subject():
    with open(README) as f:
        text = f.read().split(SECTION, 1)[1].split("\n## ", 1)[0]
    for subject in ("First mount", "Revocation drill", "Rotation", "Key retirement", "Backup and restore", "KMS outage", "Region change"):
        assert f"**{subject}.**" in text


def test_every_command_of_it(devkms, tmp_path):
    """Paths below /srv and /etc/byokfs become the test's own; the endpoint, which real AWS does not need, is added to the configuration."""
    new = devkms.client.create_key(Description="new")["KeyMetadata"]["Arn"]
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for program in ("byokfs", "byokfsctl"):
        os.symlink(os.path.join(BUILD, program), bin_dir / program)
    env = dict(environment(), OLD=devkms.key, NEW=new, BYOKFS_CONFIG=f"{tmp_path}/etc/byokfs/byokfs.ini", AWS_ACCESS_KEY_ID=AK,
               AWS_SECRET_ACCESS_KEY=SK, AWS_PAGER="", PATH=f"{bin_dir}:{os.environ['PATH']}", TMPDIR=str(tmp_path))
    said = {}
    try:
        for title, commands in blocks():
            script = commands.replace("/srv/", f"{tmp_path}/srv/").replace("/etc/byokfs", f"{tmp_path}/etc/byokfs")
            script = script.replace("[kms]\\nkey", f"[cache]\\nprobe = 500ms\\nlease = 2s\\n[kms]\\nendpoint = {devkms.endpoint}\\nkey")
            r = subprocess.run(["bash", "-c", PRELUDE.format(endpoint=devkms.endpoint) + script], env=env, capture_output=True, text=True, timeout=180)
            assert r.returncode == 0, f"{title}:\n{commands}\n{r.stdout}{r.stderr}"
            said[title] = said.get(title, "") + r.stdout + r.stderr
        assert "Input/output error" in said["Revocation drill"]
        with open(tmp_path / "srv" / "plain" / "file") as f:
            assert f.read() == "hello\n"
        assert new in said["Key retirement"] and "not needed" in said["Key retirement"]
    finally:
        subprocess.run(["umount", str(tmp_path / "srv" / "plain")], capture_output=True)
