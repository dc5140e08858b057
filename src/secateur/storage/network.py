"""Whether the model hub can be reached, found out without waiting for retries."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants


def hub_is_out_of_reach() -> str | None:
    """Why the Hugging Face hub cannot be reached, or None where it may be worth trying.

    Looks up the hub's address only; behind a proxy, names need not resolve here.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    host = urlsplit(constants.ENDPOINT).hostname or ""
    if getproxies():
        return None
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return f"{host} cannot be reached"
    return None
