"""`recuros nexus`: the noun and the list of its verbs; what they do is in files of their own."""

from __future__ import annotations

from console.verb import noun
from console.verbs import nexus_bundle

nexus = noun("nexus", "From many teachers to one stand-alone student bundle.")
nexus.add_command(nexus_bundle.generate)
nexus.add_command(nexus_bundle.serve)
nexus.add_command(nexus_bundle.verify)
