// Package events holds the facts: what happened, one struct for each, with its name and version. An event is defined once and says its
// own name. After a release it is never edited: a new shape is a .v2, with an upcaster from .v1 (see upcast).
package events

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/go-json-experiment/json/v1"
	"github.com/google/uuid"
)

// Event is a fact of one stream. Each kind of stream seals its own sum type (BuildEvent, RunEvent, …).
type Event interface {
	// Name is what is stored: "stream.fact.vN". It never changes.
	Name() string
}

// Recorded is an event with its place in the log.
type Recorded struct {
	Position    int64     // gapless, from 1, in commit order; also the event's id
	Stream      string    // such as "build/flask/3.0.0/cp311/linux_x86_64"
	Version     int64     // place in the stream, gapless, from 1
	Command     uuid.UUID // what made it
	Correlation uuid.UUID // the first command of the conversation
	Causation   int64     // position of the event that a policy reacted to; 0 for a command from outside
	Actor       string    // who sent the command
	Time        time.Time // when it was recorded, UTC, microseconds
	Size        int       // bytes of the stored data
	Event       Event
}

// Unknown stands for an event whose name this program does not know, such as one of a newer release. Readers pass over it.
type Unknown struct {
	Type string
	Data json.RawMessage
}

// Name is the stored name.
func (u Unknown) Name() string { return u.Type }

type decoder func([]byte) (Event, error)

var (
	decoders  = map[string]decoder{}
	zeroes    = map[string]Event{}
	upcasters = map[string]func(Event) Event{}
)

// register makes an event type known. Each type has one register line, in the file that defines it.
func register[E Event]() {
	var zero E
	name := zero.Name()
	if _, twice := decoders[name]; twice {
		panic("events: " + name + " is registered twice")
	}
	zeroes[name] = zero
	decoders[name] = func(data []byte) (Event, error) {
		var e E
		if bytes.Equal(bytes.TrimSpace(data), []byte("null")) {
			return nil, errors.New("it is null") // which json takes for anything
		}
		if err := json.Unmarshal(data, &e); err != nil {
			return nil, err
		}
		return e, nil
	}
}

// upcast registers how an old shape becomes its successor; Decode applies it, again and again until the shape is current.
func upcast[Old, New Event](f func(Old) New) {
	var old Old
	upcasters[old.Name()] = func(e Event) Event { return f(e.(Old)) }
}

// Encode returns the stored form of e. It fails only for an Unknown or an unregistered type, which must not be appended.
func Encode(e Event) ([]byte, error) {
	if z, ok := zeroes[e.Name()]; !ok || reflect.TypeOf(z) != reflect.TypeOf(e) {
		return nil, fmt.Errorf("events: %T (%s) is not registered", e, e.Name())
	}
	data, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("events: encode %s: %w", e.Name(), err)
	}
	return data, nil
}

// Decode reads the stored form and brings it to its current shape. A name that is not known gives Unknown, not an error; data that
// does not fit its name is an error.
func Decode(name string, data []byte) (Event, error) {
	d, ok := decoders[name]
	if !ok {
		return Unknown{Type: name, Data: slices.Clone(data)}, nil
	}
	e, err := d(data)
	if err != nil {
		return nil, fmt.Errorf("events: decode %s: %w", name, err)
	}
	for up := upcasters[e.Name()]; up != nil; up = upcasters[e.Name()] {
		e = up(e)
	}
	return e, nil
}

// All returns a zero value of every registered event, by name.
func All() []Event {
	all := make([]Event, 0, len(zeroes))
	for _, e := range zeroes {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b Event) int {
		if a.Name() < b.Name() {
			return -1
		}
		return 1
	})
	return all
}
