"""When a stored value may be reused, how it is evaluated otherwise, and how its gradient is found.

In the order in which a read of ``module.weight`` comes through:

* `value_store`: the values of one tensor; each read comes here;
* `stored_value`: **when a stored value may be reused**: what a read asks of it;
* `fingerprint`: the largest part of that: whether what it was computed from is unchanged;
* `tensor_state`: the same for one tensor;
* `events`: after which events all numbers of a large tensor are compared;
* `inplace_writes`: whether somebody wrote into a value that was returned to a reader;
* `cached`: the context manager in which values of foreign modules are reused, too;
* `recipe`: how the value is evaluated, found out once;
* `evaluated_tensor`: the parametrizations and free parameters that it is evaluated from;
* `backward`: the gradient of a value that several losses have read;
* `value_hooks`: hooks that users register on the value.
"""
