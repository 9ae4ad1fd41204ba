"""What travels, as plain values: one dataclass per message of `proto/bursar/v1`, same name, same fields.

The machines speak these; `bursar.runtime.codec` turns them into protobuf messages and back. The meaning of every field
is documented once, in the proto files.
"""
