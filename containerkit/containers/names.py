"""Names of containers: the rule for them, and one for who does not think of any."""

from __future__ import annotations

import re
import secrets

from ..errors import InvalidValue

__all__ = ["check_name", "random_id", "random_name"]

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", re.ASCII)
_LONGEST = 255

_ADJECTIVES = """
able agile amber awake balanced bold brave bright brisk calm candid careful cheerful civil clear clever composed cosmic
crisp curious daring deft eager early easy elated exact fair famous fearless firm fleet fluent frank free fresh gentle
glad golden graceful grand hardy helpful honest humble intent jolly jovial keen kind lively loyal lucid lunar mellow
merry mild modest neat nimble noble open patient placid plucky polite prompt proud quick quiet rapid ready robust rustic
sage serene sharp silent simple sincere sleek smart solar solid spry steady stoic sunny swift tender tidy tranquil
trusty upbeat valiant vivid warm wise witty zesty
"""
_SURNAMES = """
abel agnesi ampere archimedes babbage banach bernoulli bessel bohr boole borg braun cantor carson cauchy cayley cerf
chandra chomsky church clarke cohen conway cori coulomb curie dijkstra dirac dyson easley engelbart erdos euclid euler
faraday fermat fermi feynman fibonacci fourier franklin galileo galois gauss germain godel goldberg goodall hamilton
hardy heaviside hertz hilbert hodgkin hopper huygens hypatia jacobi joule kay kepler khayyam kilburn kirch klein knuth
kovalevskaya lagrange lamarr laplace lavoisier leavitt leibniz liskov lovelace markov maxwell mccarthy meitner mendel
mirzakhani napier nash newton noether pascal pasteur perlman planck poincare ptolemy ramanujan riemann ritchie rubin
sagan shannon somerville stallman tesla thompson torvalds turing volta wiener wiles wirth wozniak wu zuse
"""


def check_name(name: str) -> str:
    """Docker's rule. Raises InvalidValue."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise InvalidValue(
            f"{name!r} is not a name for a container: letters and digits, then also '_', '.' and '-', from 2 to "
            f"{_LONGEST} of them"
        )
    return name


def random_name(attempt: int = 0) -> str:
    """``"brisk_hopper"``; the more attempts were in vain, the more names there are to take from."""
    name = f"{secrets.choice(_ADJECTIVES.split())}_{secrets.choice(_SURNAMES.split())}"
    return f"{name}{secrets.randbelow(10**attempt)}" if attempt else name


def random_id() -> str:
    """64 hexadecimal digits; never all decimal in the first 12, which would be a bad host name."""
    while True:
        made = secrets.token_hex(32)
        if not made[:12].isdecimal():
            return made
