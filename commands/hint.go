package commands

import (
	"fmt"
	"reflect"
	"regexp"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/hints"
	"github.com/wheelrefinery/refinery/internal/fault"
)

var hintForm = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]*$`) // never "..", since it ends in paths

// Hint is the state of a hint.
type Hint struct {
	Version int64 `json:"version"` // of the stream
	Exists  bool  `json:"exists"`

	hint    events.Hint
	shipped bool // nobody has changed what the program brought
}

// Fold applies an event.
func (h Hint) Fold(e events.HintEvent) Hint {
	h.Version++
	switch e := e.(type) {
	case events.HintSaved:
		h.Exists, h.hint, h.shipped = true, e.Hint, e.Shipped
	case events.HintDeleted:
		h.Exists, h.hint, h.shipped = false, events.Hint{}, false
	}
	return h
}

// expect refuses unless the hint is at the version that the sender saw; 0 is any.
func (h Hint) expect(version int64) error {
	if version != 0 && (version != h.Version || !h.Exists) {
		return fault.New(fault.Changed, "the hint has changed since it was read: read it again, and send the change with its new ETag")
	}
	return nil
}

// SaveHint makes or replaces a hint.
type SaveHint struct {
	events.Hint
	Expected int64 `json:"expected,omitempty"` // version that it replaces; 0: any, or none
	New      bool  `json:"new,omitempty"`      // only if there is none
	Shipped  bool  `json:"shipped,omitempty"`  // by the program's own catalogue: what somebody edited or deleted stays so
}

// Decide saves what is not so already.
func (c SaveHint) Decide(h Hint) ([]events.HintEvent, error) {
	if c.Shipped && h.Version > 0 && !h.shipped {
		return none[events.HintEvent]()
	}
	if c.New && h.Exists {
		return conflict[events.HintEvent]("there is a hint of this id already: choose another, or replace it with PUT")
	}
	if err := h.expect(c.Expected); err != nil {
		return nil, err
	}
	if h.Exists && reflect.DeepEqual(h.hint, c.Hint) {
		return none[events.HintEvent]()
	}
	return one[events.HintEvent](events.HintSaved{Hint: c.Hint, Shipped: c.Shipped})
}

// DeleteHint ends a hint.
type DeleteHint struct {
	ID       string `json:"id"`
	Expected int64  `json:"expected,omitempty"` // version that it ends; 0: any
}

// Decide deletes what is there.
func (c DeleteHint) Decide(h Hint) ([]events.HintEvent, error) {
	if !h.Exists {
		return nil, fault.New(fault.NotFound, "there is no hint of this id: GET /hints lists what there is")
	}
	if err := h.expect(c.Expected); err != nil {
		return nil, err
	}
	return one[events.HintEvent](events.HintDeleted{})
}

func (SaveHint) Name() string   { return "hint.save" }
func (DeleteHint) Name() string { return "hint.delete" }

func (c SaveHint) Stream() string   { return events.HintStream(c.Hint.ID) }
func (c DeleteHint) Stream() string { return events.HintStream(c.ID) }

// Validate checks the hint.
func (c SaveHint) Validate() error {
	if err := hints.Validate(c.Hint); err != nil {
		return err
	}
	var k fault.Checks
	checkHint(&k, "/id", c.ID)
	for i, name := range c.AppliesTo.Packages {
		k.Check(len(name) <= 200, fmt.Sprintf("/applies_to/packages/%d", i), "is longer than 200 characters")
	}
	k.Check(c.Expected >= 0 && !(c.New && c.Expected > 0), "/expected", "is no version, or of a hint that is to be new")
	return k.Err()
}

func checkHint(k *fault.Checks, at, id string) {
	k.Check(form(id, hintForm, 100), at, "is not a hint's id: letters, digits, '.', '_', '-', not '.' first, at most 100")
	k.Check(id != "import", at, "is a path of its own: choose another")
}

// Validate checks the shape.
func (c DeleteHint) Validate() error {
	var k fault.Checks
	checkHint(&k, "/id", c.ID)
	k.Check(c.Expected >= 0, "/expected", "is negative")
	return k.Err()
}

func init() {
	register[SaveHint]()
	register[DeleteHint]()
}
