// Package readapi serves HTTP reads: queries over read tables, on connections that cannot write.
//
// Lists are read by keyset: a cursor is the sort key of a page's last item, so that a page costs the same wherever it is.
package readapi
