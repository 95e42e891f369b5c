package commands

import (
	"testing"

	"github.com/wheelrefinery/refinery/events"
)

var (
	registerW  = RegisterWorker{Worker: "w1", PythonTag: "cp311", PlatformTag: "linux_x86_64", Slots: 2, Version: "1", Host: "h"}
	registered = events.WorkerRegistered{PythonTag: "cp311", PlatformTag: "linux_x86_64", Slots: 2, Version: "1", Host: "h"}
)

var workerScenarios = []scenario{
	{"new", nil, registerW, then(registered), "", ""},
	{"twice", given(registered), registerW, nil, "", ""},
	{"with another tag", given(registered), changed(func(c *RegisterWorker) { c.PythonTag = "cp312" }), thenRegistered(func(e *events.WorkerRegistered) { e.PythonTag = "cp312" }), "", ""},
	{"with another platform", given(registered), changed(func(c *RegisterWorker) { c.PlatformTag = "any" }), thenRegistered(func(e *events.WorkerRegistered) { e.PlatformTag = "any" }), "", ""},
	{"with more slots", given(registered), changed(func(c *RegisterWorker) { c.Slots = 3 }), thenRegistered(func(e *events.WorkerRegistered) { e.Slots = 3 }), "", ""},
	{"with another version", given(registered), changed(func(c *RegisterWorker) { c.Version = "" }), thenRegistered(func(e *events.WorkerRegistered) { e.Version = "" }), "", ""},
	{"on another host", given(registered), changed(func(c *RegisterWorker) { c.Host = "i" }), thenRegistered(func(e *events.WorkerRegistered) { e.Host = "i" }), "", ""},
}

func changed(f func(*RegisterWorker)) RegisterWorker { c := registerW; f(&c); return c }

func thenRegistered(f func(*events.WorkerRegistered)) []events.Event {
	e := registered
	f(&e)
	return then(e)
}

func TestWorker(t *testing.T) { check(t, workerScenarios) }
