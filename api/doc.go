// Package api is the HTTP contract and what follows from it: openapi.yaml, the code that is generated from it (types, strict server,
// client), the one table from error codes to HTTP statuses, and the middleware that every request passes.
//
// Operations tagged read are implemented by package readapi, those tagged write by package writeapi; the wiring embeds both in one
// struct, which is the StrictServerInterface. Operations tagged index (/simple/, the wheels and their metadata) are plain handlers.
//
// A handler of the strict server returns one of three things: a generated response; an Answer, which fits every operation; or an error,
// whose fault.Code becomes the status.
package api

//go:generate go tool oapi-codegen -config oapi-types.yaml openapi.yaml
//go:generate go tool oapi-codegen -config oapi-client.yaml openapi.yaml
//go:generate go tool oapi-codegen -config oapi-server.yaml openapi.yaml
