// Package commands holds the intentions: what somebody wants to happen, and how that is decided.
//
// A decision is pure. A command folds its stream's events into a small state and returns events or a refusal (a *fault.Error). It
// reads no clock, no database and no network; what it needs to know travels in the command. A few decide beside a second stream, which
// they see as it stands at that moment and do not change (docs/decisions/0016).
package commands

import (
	"fmt"
	"strings"

	"github.com/go-json-experiment/json/v1"
	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Command is an intention for one stream.
type Command interface {
	Name() string    // what is written on the bus: "stream.verb"; it never changes
	Stream() string  // the stream that decides
	Validate() error // all that can be said without the stream, every reason at once
}

// State is what the events of a stream fold to. Its JSON is the result that an applied command answers with.
type State[S any, E events.Event] interface {
	Fold(E) S
}

// placed is a state that also wants to know where in the log its events stand. While a batch is decided, an event that is not stored yet
// has a position after all that are.
type placed[S any, E events.Event] interface {
	FoldAt(e E, position int64) S
}

// decider is a command that decides on a state S and returns events of its stream's sum type E.
type decider[S State[S, E], E events.Event] interface {
	Command
	Decide(S) ([]E, error)
}

// besideDecider is a command that decides beside a second stream, whose state is B.
type besideDecider[S State[S, E], E events.Event, B State[B, F], F events.Event] interface {
	Command
	Beside() string
	Decide(S, B) ([]E, error)
}

// model is how a stream is folded.
type model struct {
	zero any
	fold func(state any, e events.Event, position int64) any
}

func modelOf[S State[S, E], E events.Event]() model {
	var zero S
	return model{zero, func(state any, event events.Event, position int64) any {
		e, ok := event.(E)
		if !ok {
			return state // of a newer release
		}
		if p, ok := state.(placed[S, E]); ok {
			return p.FoldAt(e, position)
		}
		return state.(S).Fold(e)
	}}
}

// kind is what the handler knows of a command type.
type kind struct {
	model
	beside model // of the second stream; without a fold there is none
	decode func(data []byte) (Command, error)
	decide func(state, beside any, c Command) ([]events.Event, error)
}

var kinds = map[string]kind{}

// register makes a command type known; state and event types follow from its Decide.
func register[C decider[S, E], S State[S, E], E events.Event]() {
	add[C](kind{model: modelOf[S, E](), decide: func(state, _ any, c Command) ([]events.Event, error) {
		return plain(c.(C).Decide(state.(S)))
	}})
}

// registerBeside is register for a command that decides beside a second stream.
func registerBeside[C besideDecider[S, E, B, F], S State[S, E], E events.Event, B State[B, F], F events.Event]() {
	add[C](kind{model: modelOf[S, E](), beside: modelOf[B, F](), decide: func(state, beside any, c Command) ([]events.Event, error) {
		return plain(c.(C).Decide(state.(S), beside.(B)))
	}})
}

func add[C Command](k kind) {
	var zero C
	if _, twice := kinds[zero.Name()]; twice {
		panic("commands: " + zero.Name() + " is registered twice")
	}
	k.decode = func(data []byte) (Command, error) {
		var c C
		err := json.Unmarshal(data, &c)
		return c, err
	}
	kinds[zero.Name()] = k
}

func plain[E events.Event](decided []E, err error) ([]events.Event, error) {
	if err != nil {
		return nil, err
	}
	evs := make([]events.Event, len(decided))
	for i, e := range decided {
		evs[i] = e
	}
	return evs, nil
}

// Meta is what travels with a command.
type Meta struct {
	ID          uuid.UUID `json:"id"` // handling it twice is handling it once
	Actor       string    `json:"actor"`
	Correlation uuid.UUID `json:"correlation"`         // zero: this command begins a conversation
	Causation   int64     `json:"causation,omitempty"` // position of the event that a policy reacts to
	Digest      string    `json:"digest,omitempty"`    // of the request that sent it
	Async       bool      `json:"async,omitempty"`     // nobody waits for the outcome: it may come some milliseconds later
}

// mostMeta bounds each text of a Meta, in bytes.
const mostMeta = 200

// validate refuses what cannot be recorded with an outcome. A command without an id would be taken for the one before it.
func (m Meta) validate() error {
	if m.ID == uuid.Nil || !clean(m.Actor, mostMeta) || !clean(m.Digest, mostMeta) {
		return fault.New(fault.Invalid, "the command has no id, or an actor or a digest longer than %d bytes or not text", mostMeta)
	}
	return nil
}

type envelope struct {
	Meta
	Name string          `json:"name"`
	Data json.RawMessage `json:"data"`
}

// mostCommand bounds the encoded size of a command, which bounds events too.
const mostCommand = 4 << 20

// Encode validates c and returns its form on the bus.
func Encode(m Meta, c Command) ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", c.Name(), err)
	}
	if len(data) > mostCommand {
		return nil, fault.New(fault.TooLarge, "%s is larger than %d bytes", c.Name(), mostCommand)
	}
	if m.Correlation == uuid.Nil {
		m.Correlation = m.ID
	}
	return json.Marshal(envelope{m, c.Name(), data})
}

// Decode reads what Encode wrote, and validates again: what is on the bus may come from elsewhere. Its errors are fault.Invalid, and
// what it returns with them can be recorded.
func Decode(payload []byte) (Meta, Command, error) {
	var e envelope
	err := json.Unmarshal(payload, &e)
	bad := e.Meta.validate()
	if bad != nil {
		e.Meta = Meta{}
	}
	if err != nil {
		return e.Meta, nil, fault.New(fault.Invalid, "the command is not JSON of the expected form")
	}
	if bad != nil {
		return e.Meta, nil, bad
	}
	k, ok := kinds[e.Name]
	if !ok {
		return e.Meta, nil, fault.New(fault.Invalid, "there is no such command")
	}
	c, err := k.decode(e.Data)
	if err != nil {
		return e.Meta, nil, fault.New(fault.Invalid, "the data of %s does not fit", e.Name)
	}
	return e.Meta, c, c.Validate()
}

// none is the decision that all is as it should be already.
func none[E any]() ([]E, error) { return nil, nil }

func one[E any](e E) ([]E, error) { return []E{e}, nil }

func conflict[E any](format string, args ...any) ([]E, error) {
	return nil, fault.New(fault.Conflict, format, args...)
}

// clean says that s can be stored: valid UTF-8 without NUL, which Postgres text does not hold, of at most n bytes.
func clean(s string, n int) bool {
	return len(s) <= n && !strings.ContainsRune(s, 0) && strings.ToValidUTF8(s, "") == s
}
