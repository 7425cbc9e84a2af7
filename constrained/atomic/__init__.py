"""How tensors and modules are written: completely or not at all.

* `undo`: modules, tensors and optimizers are put back as they were if anything is raised;
* `interrupts`: Ctrl-C waits until a change is done;
* `contents`: a tensor gets other contents, of another shape or dtype too, and keeps its identity;
* `sharded`: the same for tensors that FSDP has cut into shards.
"""
