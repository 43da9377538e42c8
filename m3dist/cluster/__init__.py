"""Ray clusters from the outside: submit a command as a job, watch it, check a cluster, write a KubeRay manifest.

settings.py  the section `cluster` of a config
place.py     which cluster, reached how
package.py   what travels with a job, and what a job must be able to reach
jobs.py      submit, follow, list, stop
enter.py     the first process of a job on the cluster: checks its storage, then runs the command
probe.py     facts about nodes, collectives between them
doctor.py    every check of a place, with its fix
shape.py     how many pods a command needs, and how large
pods.py      pod templates
rayjob.py    KubeRay manifests
patch.py     patches merged into a manifest
"""
