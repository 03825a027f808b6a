# A map in a program that declares none.
# expect: E8-VERIFY:map pc=1 line=6
.name no_map_at_all
.hook on_forward
ICONST i0, 0
MINC i0, @0
EXIT
