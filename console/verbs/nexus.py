"""`recuros nexus`: the noun and the list of its verbs; what they do is in files of their own."""

from __future__ import annotations

from console.verb import noun
from console.verbs import nexus_bundle, nexus_run

nexus = noun("nexus", "From many teachers to one stand-alone student bundle.")
nexus.add_command(nexus_run.run_)
nexus.add_command(nexus_run.teacher)
for _command in nexus_run.STAGES:
    nexus.add_command(_command)
nexus.add_command(nexus_run.gate)
nexus.add_command(nexus_run.refine)
nexus.add_command(nexus_run.add_teacher)
nexus.add_command(nexus_run.drop)
nexus.add_command(nexus_bundle.generate)
nexus.add_command(nexus_bundle.quantize)
nexus.add_command(nexus_bundle.serve)
nexus.add_command(nexus_bundle.verify)
