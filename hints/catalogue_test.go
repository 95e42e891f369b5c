package hints

import (
	"slices"
	"strings"
	"testing"

	"github.com/wheelrefinery/refinery/events"
)

// Lines that mean two things, by one of their hints.
var alsoFound = map[string][]string{
	"cairo":               {"pkg-config"},
	"pkg-config":          {"cairo"},
	"longintrepr":         {"longintrepr-aiohttp"},
	"longintrepr-aiohttp": {"longintrepr"},
	"network-cargo":       {"network-dns"},
}

func TestCatalogueFindsItsExamples(t *testing.T) {
	list := Catalogue()
	if len(list) < 60 {
		t.Errorf("%d hints", len(list))
	}
	m := mustCompile(t, list)
	seen := map[string]bool{}
	for _, h := range list {
		if seen[h.ID] || seen[h.Twin()] {
			t.Errorf("%s is there twice", h.ID)
		}
		seen[h.ID], seen[h.Twin()] = true, true
		if h.Note == "" || len(h.Tags) == 0 || len(h.Examples) == 0 {
			t.Errorf("%s lacks a note, tags or examples", h.ID)
		}
		for _, line := range h.Examples {
			var ids []string
			for _, found := range mustMatch(t, m, Build{}, line) {
				if found.Hint != h.ID && !slices.Contains(alsoFound[h.ID], found.Hint) {
					t.Errorf("%s: the example %q is found by %s", h.ID, line, found.Hint)
				}
				ids = append(ids, found.Hint)
			}
			if !slices.Contains(ids, h.ID) {
				t.Errorf("%s: the example %q is not found", h.ID, line)
			}
		}
	}
}

// What is shipped says for every system package what both families of distributions call it.
func TestCatalogueNamesPackagesOfBoth(t *testing.T) {
	for _, h := range Catalogue() {
		kinds := map[string]bool{}
		for _, r := range h.Recipes {
			kinds[r.Kind] = true
		}
		if kinds["apt"] != kinds["dnf"] {
			t.Errorf("%s: packages for one family only", h.ID)
		}
	}
}

func TestCatalogueIsACopy(t *testing.T) {
	Catalogue()[0] = events.Hint{ID: "changed"}
	if strings.Contains(Catalogue()[0].ID, "changed") {
		t.Error("a caller can change what others get")
	}
}
