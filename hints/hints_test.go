package hints_test

import (
	"strings"
	"testing"

	"github.com/wheelrefinery/refinery/hints"
)

func TestCatalogueFindsItsExamples(t *testing.T) {
	list := hints.Catalogue()
	m, err := hints.Compile(list)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range list {
		for _, line := range h.Examples {
			found, err := m.Match(hints.Build{}, strings.NewReader("first\n"+line+"\n"))
			if err != nil || len(found) != 1 || found[0] != (hints.Match{Hint: h.ID, Line: 2, Text: line}) {
				t.Errorf("%s: %+v, %v", h.ID, found, err)
			}
		}
	}
}
