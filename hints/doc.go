// Package hints knows what lines of a build's log mean: it checks hints and their recipes, reads lists of them, brings a list of its
// own, and finds many thousands of them in a log in one pass.
package hints
