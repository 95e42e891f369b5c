// Package deptest holds the test that enforces which package may import which (ARCHITECTURE.md, "The rooms").
package deptest
