"""Whether W&B has an API key, found without prompting for one.

wandb has no public function for this: `wandb.login` and `wandb.Api` prompt on the terminal or raise, and its internal helpers have
moved within the versions that we support (`wandb.sdk.lib.apikey` is now `wandb.sdk.lib.wbauth`).
"""

from __future__ import annotations

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlparse


def has_key() -> bool:
    """Whether W&B has an API key, in WANDB_API_KEY or in a netrc file under the server's name."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    saved = configparser.ConfigParser()
    saved.read(Path(os.path.expanduser(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb"))) / "settings")
    url = os.environ.get("WANDB_BASE_URL") or saved.get("default", "base_url", fallback=wandb.Settings().base_url)
    hosts: list[str] = [urlparse(str(url)).netloc, *(["api.wandb.ai"] if url == wandb.Settings().base_url else [])]
    usual = ("~/.netrc", "~/_netrc")
    candidates = [Path(os.path.expanduser(one)) for one in ([os.environ["NETRC"]] if os.environ.get("NETRC") else usual)]
    path = next((path for path in candidates if path.exists()), None)
    try:
        known = netrc.netrc(path) if path else None
    except (netrc.NetrcParseError, OSError):
        return False
    return known is not None and any((known.authenticators(host) or ("", "", ""))[2] for host in hosts)
