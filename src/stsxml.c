/* stsxml.c — expat with limits. Hides: which elements matter and below which they stand, and that expat keeps copies of
 * what it parses: its allocator wipes what it frees. */
#include "secret.h"
#include "stsxml.h"

#include <errno.h>
#include <expat.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 8u
#define TEXT_MAX  65536u

static const struct field {
	const char *parent, *name;
	size_t offset, size;
} fields[] = {
#define FIELD(parent, name, member) \
	{ parent, name, offsetof(struct stsxml, member), sizeof(((struct stsxml *)0)->member) }
	FIELD("Credentials", "AccessKeyId", access_key),
	FIELD("Credentials", "SecretAccessKey", secret_key),
	FIELD("Credentials", "SessionToken", token),
	FIELD("Credentials", "Expiration", expiration),
	FIELD("AssumedRoleUser", "Arn", arn),
	FIELD("GetCallerIdentityResult", "Arn", arn),
	FIELD("Error", "Code", code),
	FIELD("Error", "Message", message),
	FIELD("ResponseMetadata", "RequestId", request_id),
	FIELD("ErrorResponse", "RequestId", request_id),
#undef FIELD
};

struct reader {
	XML_Parser parser;
	struct stsxml *out;
	char name[DEPTH_MAX][24]; /* of the open elements; longer names are none of ours */
	unsigned depth;
	const struct field *field; /* whose text comes now */
	size_t len;
	int error;
};

static void stop(struct reader *r)
{
	r->error = -EINVAL;
	(void)XML_StopParser(r->parser, XML_FALSE);
}

static const struct field *find(const struct reader *r, const char *name)
{
	if (!r->depth)
		return NULL;
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		if (!strcmp(fields[i].name, name) && !strcmp(fields[i].parent, r->name[r->depth - 1]))
			return &fields[i];
	return NULL;
}

static void XMLCALL on_start(void *arg, const XML_Char *name, const XML_Char **attributes)
{
	struct reader *r = arg;

	(void)attributes;
	if (r->depth == DEPTH_MAX || r->field) { /* ours hold text only */
		stop(r);
		return;
	}
	r->field = find(r, name);
	r->len = 0;
	if (r->field && *((char *)r->out + r->field->offset))
		stop(r);
	r->name[r->depth][0] = '\0';
	if (strlen(name) < sizeof(r->name[0]))
		memcpy(r->name[r->depth], name, strlen(name) + 1);
	r->depth++;
}

static void XMLCALL on_end(void *arg, const XML_Char *name)
{
	struct reader *r = arg;

	(void)name;
	r->field = NULL;
	r->depth--;
}

/* A message may be cut, nothing else may. */
static void XMLCALL on_text(void *arg, const XML_Char *text, int n)
{
	struct reader *r = arg;
	size_t take = (size_t)n, room;

	if (!r->field || r->error)
		return;
	room = r->field->size - 1 - r->len;
	if (take > room && r->field->offset != offsetof(struct stsxml, message)) {
		stop(r);
		return;
	}
	take = take < room ? take : room;
	memcpy((char *)r->out + r->field->offset + r->len, text, take);
	r->len += take;
}

static void XMLCALL on_doctype(
    void *arg, const XML_Char *name, const XML_Char *system, const XML_Char *public, int internal)
{
	(void)name;
	(void)system;
	(void)public;
	(void)internal;
	stop(arg);
}

int stsxml_parse(struct stsxml *out, const char *text, size_t len)
{
	static const XML_Memory_Handling_Suite memory = { malloc, secret_heap_realloc, secret_heap_free };
	struct reader r = { .parser = XML_ParserCreate_MM("UTF-8", &memory, NULL), .out = out };

	memset(out, 0, sizeof(*out));
	if (!r.parser)
		return -ENOMEM;
	XML_SetUserData(r.parser, &r);
	XML_SetElementHandler(r.parser, on_start, on_end);
	XML_SetCharacterDataHandler(r.parser, on_text);
	XML_SetStartDoctypeDeclHandler(r.parser, on_doctype);
	if (!len || len > TEXT_MAX || XML_Parse(r.parser, text, (int)len, XML_TRUE) != XML_STATUS_OK)
		r.error = len && XML_GetErrorCode(r.parser) == XML_ERROR_NO_MEMORY ? -ENOMEM : -EINVAL;
	XML_ParserFree(r.parser);
	if (r.error)
		explicit_bzero(out, sizeof(*out));
	return r.error;
}
