{{/* Name of the application in labels. */}}
{{- define "durahub.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Beginning of the names of all objects; short enough for what is put behind it. */}}
{{- define "durahub.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "durahub.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "durahub.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "durahub.selector" -}}
app.kubernetes.io/name: {{ include "durahub.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of a server pod; the chart's other pods have another component. */}}
{{- define "durahub.server" -}}
{{ include "durahub.selector" . }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "durahub.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "durahub.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "durahub.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "durahub.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "durahub.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* Host of the client service, and of the peer service. */}}
{{- define "durahub.host" -}}
{{ include "durahub.fullname" . }}.{{ .Release.Namespace }}.svc.{{ .Values.cluster.domain }}
{{- end -}}
{{- define "durahub.peerHost" -}}
{{ include "durahub.fullname" . }}-peers.{{ .Release.Namespace }}.svc.{{ .Values.cluster.domain }}
{{- end -}}

{{/* Peer address of a pod: (list root ordinal). */}}
{{- define "durahub.peer" -}}
{{- $root := index . 0 -}}
{{ include "durahub.fullname" $root }}-{{ index . 1 }}.{{ include "durahub.peerHost" $root }}:8083
{{- end -}}

{{- define "durahub.endpoint" -}}
{{ ternary "https" "http" (ne .Values.tls.existingSecret "") }}://{{ include "durahub.host" . }}:{{ .Values.service.grpcPort }}
{{- end -}}

{{/* Whether the HTTP port speaks TLS. */}}
{{- define "durahub.httpScheme" -}}
{{- $tls := .Values.config.tls | default dict -}}
{{- if and .Values.tls.existingSecret (get $tls "http" | toString | ne "false") -}}HTTPS{{- else -}}HTTP{{- end -}}
{{- end -}}

{{/* One TOML table with its tables: (list name values). */}}
{{- define "durahub.toml" -}}
{{- $name := index . 0 -}}
{{- $values := index . 1 -}}
{{- if $name }}
[{{ $name }}]
{{ end -}}
{{- range $key, $value := $values }}
{{- if not (kindIs "map" $value) }}
{{- $key }} = {{ toJson $value }}
{{ end -}}
{{- end }}
{{- range $key, $value := $values }}
{{- if kindIs "map" $value }}
{{- include "durahub.toml" (list (ternary (printf "%s.%s" $name $key) $key (ne $name "")) $value) }}
{{- end -}}
{{- end }}
{{- end -}}

{{/* The settings that all nodes share, as JSON. */}}
{{- define "durahub.shared" -}}
{{- $own := dict
  "grpc_addr" "0.0.0.0:8080" "http_addr" "0.0.0.0:8082" "peer_addr" "0.0.0.0:8083"
  "replication_factor" .Values.cluster.replicationFactor "partitions" .Values.cluster.partitions
  "limits" (dict "drain_timeout" (printf "%ds" (int .Values.drainSeconds)))
-}}
{{- if .Values.persistence.enabled }}
{{- $_ := set $own "data_dir" "/data/durahub" }}
{{- else }}
{{- $_ := set $own "ephemeral" true }}
{{- end }}
{{- if .Values.tls.existingSecret }}
{{- $tls := dict "cert_file" "/etc/durahub/tls/tls.crt" "key_file" "/etc/durahub/tls/tls.key" }}
{{- if .Values.tls.clientCA }}{{- $_ := set $tls "client_ca_file" "/etc/durahub/tls/ca.crt" }}{{- end }}
{{- $_ := set $own "tls" $tls }}
{{- end }}
{{- if .Values.peerTls.existingSecret }}
{{- $peer := dict "cert_file" "/etc/durahub/peer-tls/tls.crt"
  "key_file" "/etc/durahub/peer-tls/tls.key" "ca_file" "/etc/durahub/peer-tls/ca.crt" }}
{{- /* Whoever lacks this name joins nothing, though the CA of the nodes may have signed others. */}}
{{- if not (hasKey (.Values.config.peer_tls | default dict) "name") }}
{{- $_ := set $peer "name" (include "durahub.peerHost" .) }}
{{- end }}
{{- $_ := set $own "peer_tls" $peer }}
{{- end }}
{{- $auth := dict }}
{{- with .Values.auth.tokens }}{{- if .secret }}{{- $_ := set $auth "tokens_file" (printf "/etc/durahub/tokens/%s" .key) }}{{- end }}{{- end }}
{{- with .Values.auth.grants }}{{- if .secret }}{{- $_ := set $auth "grants_file" (printf "/etc/durahub/grants/%s" .key) }}{{- end }}{{- end }}
{{- $jwt := dict }}
{{- with .Values.auth.jwks }}{{- if .secret }}{{- $_ := set $jwt "jwks_file" (printf "/etc/durahub/jwks/%s" .key) }}{{- end }}{{- end }}
{{- with .Values.auth.jwksCA }}{{- if .secret }}{{- $_ := set $jwt "jwks_ca_file" (printf "/etc/durahub/jwks-ca/%s" .key) }}{{- end }}{{- end }}
{{- if $jwt }}{{- $_ := set $auth "jwt" $jwt }}{{- end }}
{{- if $auth }}{{- $_ := set $own "auth" $auth }}{{- end }}
{{- mergeOverwrite (deepCopy .Values.config) $own | toJson -}}
{{- end -}}

{{/* The configuration file of one pod: (list root ordinal). Pods of the first start form the cluster, others join. */}}
{{- define "durahub.podConfig" -}}
{{- $root := index . 0 -}}
{{- $ordinal := int (index . 1) -}}
{{- $initial := int $root.Values.cluster.initialReplicas -}}
{{- $config := include "durahub.shared" $root | fromJson -}}
{{- $_ := set $config "advertise_peer" (include "durahub.peer" (list $root $ordinal)) -}}
{{- $rejoins := false -}}
{{- range $root.Values.cluster.rejoin }}{{- if eq (int .) $ordinal }}{{- $rejoins = true }}{{- end }}{{- end -}}
{{- if or $rejoins (ge $ordinal $initial) -}}
{{- $others := list -}}
{{- range $other := until (int $root.Values.replicas) -}}
{{- if ne $other $ordinal }}{{- $others = append $others (include "durahub.peer" (list $root $other)) }}{{- end -}}
{{- end -}}
{{- $_ := set $config "join" $others -}}
{{- else -}}
{{- $_ := set $config "node_id" (add $ordinal 1) -}}
{{- if gt $initial 1 -}}
{{- $members := list -}}
{{- range $other := until $initial -}}
{{- $members = append $members (printf "%d=%s" (add $other 1) (include "durahub.peer" (list $root $other))) -}}
{{- end -}}
{{- $_ := set $config "initial_cluster" $members -}}
{{- end -}}
{{- end -}}
{{- include "durahub.toml" (list "" $config) -}}
{{- end -}}

{{/* Secrets of the server: (list name secret) each, as JSON. */}}
{{- define "durahub.secrets" -}}
{{- $all := list
  (list "tls" .Values.tls.existingSecret) (list "peer-tls" .Values.peerTls.existingSecret)
  (list "tokens" .Values.auth.tokens.secret) (list "grants" .Values.auth.grants.secret)
  (list "jwks" .Values.auth.jwks.secret) (list "jwks-ca" .Values.auth.jwksCA.secret)
-}}
{{- $used := list }}
{{- range $all }}{{- if index . 1 }}{{- $used = append $used . }}{{- end }}{{- end }}
{{- $used | toJson -}}
{{- end -}}

{{- define "durahub.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
{{- end }}
{{- with .Values.fsGroup }}
fsGroup: {{ int64 . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "durahub.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Environment, mounts and volumes of the chart's own clients. */}}
{{- define "durahub.clientEnv" -}}
{{- with .Values.client.token }}{{- if .secret }}
- {name: DURAHUB_TOKEN_FILE, value: /etc/durahub/token/{{ .key }}}
{{- end }}{{- end }}
{{- end -}}
{{- define "durahub.clientMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.client.token.secret }}
- {name: token, mountPath: /etc/durahub/token, readOnly: true}
{{- end }}
{{- end -}}
{{- define "durahub.clientVolumes" -}}
- {name: tmp, emptyDir: {sizeLimit: 64Mi}}
{{- with .Values.client.token }}{{- if .secret }}
- name: token
  secret: {secretName: {{ .secret | quote }}}
{{- end }}{{- end }}
{{- end -}}

{{/* What the schema cannot say. */}}
{{- define "durahub.check" -}}
{{- $replicas := int .Values.replicas -}}
{{- $initial := int .Values.cluster.initialReplicas -}}
{{- if and (lt $replicas $initial) (not .Values.cluster.scaledIn) -}}
{{- fail (printf "replicas (%d) is below cluster.initialReplicas (%d): the nodes that would be missing hold votes. Remove each with `durahub cluster remove-node ID`, wait until `durahub cluster status` no longer lists it, then set cluster.scaledIn=true" $replicas $initial) -}}
{{- end -}}
{{- if and (not .Values.persistence.enabled) (or (gt $replicas 1) (gt $initial 1)) -}}
{{- fail "persistence.enabled=false is for a single node: a node of a cluster must remember its votes" -}}
{{- end -}}
{{- range .Values.cluster.rejoin -}}
{{- if and (eq $replicas 1) (eq (int .) 0) -}}
{{- fail "cluster.rejoin names the only replica: there is nothing that it could join" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.grpcRoute.enabled (not .Values.grpcRoute.parentRefs) -}}
{{- fail "grpcRoute.parentRefs is empty: name the gateway that the route belongs to" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts is empty: name the hosts under which clients connect" -}}
{{- end -}}
{{- if and .Values.tls.clientCA (not .Values.tls.existingSecret) -}}
{{- fail "tls.clientCA needs tls.existingSecret" -}}
{{- end -}}
{{- end -}}
