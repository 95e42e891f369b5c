// Package projections turns events into read models: tables that can be dropped and built again from the log while they are served.
//
// A read model is one file: its row types (from whose tags the SQL is derived) and what each event does to them, in plain Go. A batch of
// events is folded in memory and each row that it touched is written once, in one round trip with the checkpoint. Handlers must be pure
// functions of the rows and the event: a fold that lacked a row is thrown away and done again once the row has been read.
//
// Each read model has a schema of its own, named after it. Runner feeds and rebuilds them.
package projections
