/* What this library and the Python that calls it must agree on beyond names: the layout of what is handed over.
 *
 * LAYOUT_VERSION changes with every struct that Python fills or reads and with every signature, here and in native.py:
 * a library that an older or newer checkout left in its place is then not called.
 */
#ifndef TEACHONCE_LAYOUT_H
#define TEACHONCE_LAYOUT_H

#define LAYOUT_VERSION 4

/* Python hands addresses over as 64 bits. Where they are none the library is not built, and Python does its work. */
_Static_assert(sizeof(void *) == 8, "addresses have 64 bits");

#endif
