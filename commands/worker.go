package commands

import (
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Worker is the state of a worker.
type Worker struct {
	PythonTag   string `json:"python_tag"`
	PlatformTag string `json:"platform_tag"`
	Slots       int    `json:"slots"`
	version     string
	host        string
}

// Fold applies an event.
func (w Worker) Fold(e events.WorkerEvent) Worker {
	switch e := e.(type) {
	case events.WorkerRegistered:
		w = Worker{e.PythonTag, e.PlatformTag, e.Slots, e.Version, e.Host}
	}
	return w
}

// RegisterWorker says what a worker can do.
type RegisterWorker struct {
	Worker      string `json:"worker"`
	PythonTag   string `json:"python_tag"`
	PlatformTag string `json:"platform_tag"`
	Slots       int    `json:"slots"`
	Version     string `json:"version,omitempty"`
	Host        string `json:"host,omitempty"`
}

// Decide notes what is new.
func (c RegisterWorker) Decide(w Worker) ([]events.WorkerEvent, error) {
	if w == (Worker{c.PythonTag, c.PlatformTag, c.Slots, c.Version, c.Host}) {
		return none[events.WorkerEvent]()
	}
	return one[events.WorkerEvent](events.WorkerRegistered{
		PythonTag: c.PythonTag, PlatformTag: c.PlatformTag, Slots: c.Slots, Version: c.Version, Host: c.Host,
	})
}

// Name is the name on the bus.
func (RegisterWorker) Name() string { return "worker.register" }

// Stream is the worker's.
func (c RegisterWorker) Stream() string { return events.WorkerStream(c.Worker) }

// Validate checks the shape.
func (c RegisterWorker) Validate() error {
	var k fault.Checks
	checkWorker(&k, c.Worker)
	k.Check(form(c.PythonTag, tagForm, 50), "/python_tag", "is not a python tag (PEP 425)")
	k.Check(form(c.PlatformTag, tagForm, 100), "/platform_tag", "is not a platform tag (PEP 425)")
	k.Check(c.Slots > 0 && c.Slots <= 1000, "/slots", "is not between 1 and 1000")
	k.Check(clean(c.Version, 100), "/version", "is longer than 100 bytes or not text")
	k.Check(clean(c.Host, 200), "/host", "is longer than 200 bytes or not text")
	return k.Err()
}

func init() {
	register[RegisterWorker]()
}
