// Package fault holds the error codes that every room shares. A code says what kind of trouble it is; api.Status maps codes to HTTP in
// one table.
package fault

import (
	"errors"
	"fmt"
)

// Code is a kind of trouble. The zero value is not a code.
type Code string

// The codes. Whoever returns an error without one means Internal.
const (
	Invalid      Code = "invalid"      // what was sent does not hold; sending it again will not help
	NotFound     Code = "not_found"    // the thing does not exist
	Conflict     Code = "conflict"     // the thing is not in a state that allows it
	Changed      Code = "changed"      // the thing is not any more what the sender read
	Unauthorized Code = "unauthorized" // no token, or a wrong one
	Forbidden    Code = "forbidden"    // known, but not allowed
	TooLarge     Code = "too_large"    // over a limit
	Unavailable  Code = "unavailable"  // a part is down; trying again may help
	Timeout      Code = "timeout"      // what was waited for did not happen in time
	Internal     Code = "internal"     // a defect
)

// Field names one bad field by JSON pointer (RFC 6901). The detail never echoes the value.
type Field struct {
	Pointer string `json:"pointer"`
	Detail  string `json:"detail"`
}

// Error is an error with a code. Message is for the person who caused it and says what to do.
type Error struct {
	Code    Code    `json:"code"`
	Message string  `json:"message"`
	Fields  []Field `json:"fields,omitempty"`
	cause   error
}

func (e *Error) Error() string { return e.Message }

func (e *Error) Unwrap() error { return e.cause }

// New makes an error; format and args are fmt's, and an error wrapped with %w stays reachable.
func New(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), cause: errors.Unwrap(err)}
}

// CodeOf returns the code of err, Internal where it has none.
func CodeOf(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}

// Checks collects what is wrong with a value, every reason at once.
type Checks struct{ fields []Field }

// Check notes detail at pointer unless ok.
func (c *Checks) Check(ok bool, pointer, format string, args ...any) {
	if !ok {
		c.fields = append(c.fields, Field{Pointer: pointer, Detail: fmt.Sprintf(format, args...)})
	}
}

// Err returns nil when every check held.
func (c *Checks) Err() error {
	if len(c.fields) == 0 {
		return nil
	}
	msg := c.fields[0].Pointer + ": " + c.fields[0].Detail
	if n := len(c.fields) - 1; n > 0 {
		msg += fmt.Sprintf(" (and %d more)", n)
	}
	return &Error{Code: Invalid, Message: msg, Fields: c.fields}
}
