"""The small scheduler process: capabilities, windows, EDF and the fair class, mailboxes, supervision.

`core.step` is deterministic and has no clock, socket or process; `loop` has the sockets and the clock, `supervisor`
the processes. Nothing here imports torch, transformers, numpy, scikit-learn or pydantic, directly or through another
package.
"""
