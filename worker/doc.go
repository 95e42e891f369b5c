// Package worker plans and builds wheels. It leases jobs from the control plane over HTTP, one for each slot, and hands back what came
// of them: a plan, or a log, a wheel and a result.
//
// Code that packages bring (build backends and their hooks) runs in boxes. A box is a folder and, where the worker is root, a user that
// no other box on the machine has at that time. A small supervisor, which is this same program started again, starts each command in
// it, holds it to its limits, and kills all that is left of it, whatever it did to get away. The commands see a clean environment and
// no cache: build requirements are installed beforehand by the planner (folder planner, a Python program on the machine's interpreter
// that runs no package's code), as another user, into an environment that the box can only read. So a build can spoil its own wheel and
// nothing else. All this needs root. As an ordinary user, limits, cleaning up and clean environment are the same, but builds run as
// that user and can reach what that user can.
//
// The package works on Linux.
package worker
