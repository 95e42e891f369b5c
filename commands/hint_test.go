package commands

import (
	"testing"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

var (
	libpq = events.Hint{
		ID: "libpq", Pattern: `libpq-fe\.h: No such file`, Severity: "error", Confidence: 0.9,
		Recipes: []events.Recipe{{Kind: "apt", Items: []string{"libpq-dev"}}}, Examples: []string{"libpq-fe.h: No such file or directory"},
	}
	libpq2 = func() events.Hint { h := libpq; h.Note = "of Postgres"; return h }()

	hSaved   = given(events.HintSaved{Hint: libpq})
	hShipped = given(events.HintSaved{Hint: libpq, Shipped: true})
	hEdited  = extended(hShipped, events.HintSaved{Hint: libpq2})
	hDeleted = extended(hShipped, events.HintDeleted{})
)

var hintScenarios = []scenario{
	{"of nothing", nil, SaveHint{Hint: libpq}, then(events.HintSaved{Hint: libpq}), "", ""},
	{"of nothing, as new", nil, SaveHint{Hint: libpq, New: true}, then(events.HintSaved{Hint: libpq}), "", ""},
	{"of nothing, a certain version", nil, SaveHint{Hint: libpq, Expected: 1}, nil, fault.Changed, "read it again"},
	{"as it is", hSaved, SaveHint{Hint: libpq}, nil, "", ""},
	{"as new, of what there is", hSaved, SaveHint{Hint: libpq2, New: true}, nil, fault.Conflict, "of this id already"},
	{"another", hSaved, SaveHint{Hint: libpq2}, then(events.HintSaved{Hint: libpq2}), "", ""},
	{"another, of the version that was read", hSaved, SaveHint{Hint: libpq2, Expected: 1}, then(events.HintSaved{Hint: libpq2}), "", ""},
	{"another, of an older version", hEdited, SaveHint{Hint: libpq, Expected: 1}, nil, fault.Changed, "read it again"},
	{"of what was deleted", hDeleted, SaveHint{Hint: libpq, New: true}, then(events.HintSaved{Hint: libpq}), "", ""},
	{"of what was deleted since it was read", hDeleted, SaveHint{Hint: libpq, Expected: 2}, nil, fault.Changed, "read it again"},

	{"shipped, of nothing", nil, SaveHint{Hint: libpq, Shipped: true}, then(events.HintSaved{Hint: libpq, Shipped: true}), "", ""},
	{"shipped, again", hShipped, SaveHint{Hint: libpq, Shipped: true}, nil, "", ""},
	{"shipped, newer", hShipped, SaveHint{Hint: libpq2, Shipped: true}, then(events.HintSaved{Hint: libpq2, Shipped: true}), "", ""},
	{"shipped, of what somebody edited", hEdited, SaveHint{Hint: libpq, Shipped: true}, nil, "", ""},
	{"shipped, of what somebody made", hSaved, SaveHint{Hint: libpq2, Shipped: true}, nil, "", ""},
	{"shipped, of what somebody deleted", hDeleted, SaveHint{Hint: libpq2, Shipped: true}, nil, "", ""},

	{"of nothing", nil, DeleteHint{ID: "libpq"}, nil, fault.NotFound, "no hint of this id"},
	{"of what there is", hSaved, DeleteHint{ID: "libpq"}, then(events.HintDeleted{}), "", ""},
	{"of the version that was read", hEdited, DeleteHint{ID: "libpq", Expected: 2}, then(events.HintDeleted{}), "", ""},
	{"of an older version", hEdited, DeleteHint{ID: "libpq", Expected: 1}, nil, fault.Changed, "read it again"},
	{"twice", hDeleted, DeleteHint{ID: "libpq"}, nil, fault.NotFound, "no hint of this id"},
}

func TestHint(t *testing.T) { check(t, hintScenarios) }
