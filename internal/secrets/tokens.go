package secrets

import (
	"bytes"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// token is a secret that its first characters give away. form is what follows the prefix, in regexp's syntax, and the
// whole is a word: behind it comes another character than a letter or digit. The forms are facts of the services; source
// says which rule of gitleaks (github.com/gitleaks/gitleaks, config/gitleaks.toml, MIT) or detect-secrets
// (github.com/Yelp/detect-secrets, Apache-2.0) names the kind, or where its owner describes it.
type token struct {
	kind, prefix, form, source string
	check                      func(window []byte, at, length int) bool // beyond the form, where there is something
	compiled                   func() *regexp.Regexp
}

// Character sets of forms.
const (
	alnum = `[0-9A-Za-z]`
	hexed = `[0-9a-fA-F]`
	word  = `[0-9A-Za-z_-]`
	b64   = `[0-9A-Za-z+/]`
)

var tokens = compile([]token{
	{kind: "1Password secret key", prefix: "A3-", form: `[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})(?:-[A-Z0-9]{5}){3}`, source: "gitleaks 1password-secret-key"},
	{kind: "1Password service account", prefix: "ops_eyJ", form: b64 + `{250,}`, source: "gitleaks 1password-service-account-token"},
	{kind: "Adobe", prefix: "p8e-", form: alnum + `{32}`, source: "gitleaks adobe-client-secret"},
	{kind: "age", prefix: "AGE-SECRET-KEY-1", form: `[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}`, source: "gitleaks age-secret-key"},
	{kind: "Aiven", prefix: "AVNS_", form: word + `{18,}`, source: "aiven.io/docs"},
	{kind: "Alibaba Cloud", prefix: "LTAI", form: alnum + `{20}`, source: "gitleaks alibaba-access-key-id"},
	{kind: "Anthropic", prefix: "sk-ant-", form: `(?:api03|admin01|oat01|sid01)-` + word + `{80,}`, source: "gitleaks anthropic-api-key, anthropic-admin-api-key"},
	{kind: "Artifactory", prefix: "AKCp", form: alnum + `{69}`, source: "gitleaks artifactory-api-key; detect-secrets artifactory"},
	{kind: "Artifactory", prefix: "cmVmd", form: alnum + `{59}`, source: "gitleaks artifactory-reference-token"},
	{kind: "Atlassian", prefix: "ATATT3", form: `[0-9A-Za-z_=-]{186}`, source: "gitleaks atlassian-api-token"},
	{kind: "Atlassian", prefix: "ATCTT3", form: `[0-9A-Za-z_=-]{186}`, source: "gitleaks atlassian-api-token"},
	{kind: "Bitbucket", prefix: "ATBB", form: `[0-9A-Za-z]{24}[0-9A-F]{8}`, source: "gitleaks bitbucket-client-secret"},
	{kind: "Authress", prefix: "sc_", form: authress, source: "gitleaks authress-service-client-access-key"},
	{kind: "Authress", prefix: "ext_", form: authress, source: "gitleaks authress-service-client-access-key"},
	{kind: "Authress", prefix: "scauth_", form: authress, source: "gitleaks authress-service-client-access-key"},
	{kind: "Authress", prefix: "authress_", form: authress, source: "gitleaks authress-service-client-access-key"},
	{kind: "AWS session", prefix: "IQoJb3JpZ2luX2Vj", form: `[0-9A-Za-z+/]{100,}`, source: "gitleaks aws-access-token; form of STS's session tokens"},
	{kind: "AWS session", prefix: "FwoGZXIvYXdz", form: `[0-9A-Za-z+/]{100,}`, source: "gitleaks aws-access-token; form of STS's session tokens"},
	{kind: "AWS Bedrock", prefix: "ABSK", form: b64 + `{109,269}={0,2}`, source: "gitleaks aws-amazon-bedrock-api-key-long-lived"},
	{kind: "AWS key id with a secret", prefix: "AKIA", form: `[A-Z2-7]{16}`, source: "gitleaks aws-access-token; detect-secrets aws", check: hasSecretNear},
	{kind: "AWS key id with a secret", prefix: "ASIA", form: `[A-Z2-7]{16}`, source: "gitleaks aws-access-token; detect-secrets aws", check: hasSecretNear},
	{kind: "AWS key id with a secret", prefix: "ABIA", form: `[A-Z2-7]{16}`, source: "gitleaks aws-access-token; detect-secrets aws", check: hasSecretNear},
	{kind: "AWS key id with a secret", prefix: "ACCA", form: `[A-Z2-7]{16}`, source: "gitleaks aws-access-token; detect-secrets aws", check: hasSecretNear},
	{kind: "AWS key id with a secret", prefix: "A3T", form: `[A-Z2-7]{17}`, source: "gitleaks aws-access-token; detect-secrets aws", check: hasSecretNear},
	{kind: "Azure shared access signature", prefix: "sig=", form: `[0-9A-Za-z+/%]{43,70}(?:%3[dD]|=)`, source: "learn.microsoft.com, Create a service SAS", check: isSAS},
	{kind: "Azure storage", prefix: "AccountKey=", form: b64 + `{86}==`, source: "detect-secrets azure_storage_key"},
	{kind: "Buildkite", prefix: "bkua_", form: `[0-9a-f]{40}`, source: "buildkite.com/docs/apis/managing-api-tokens"},
	{kind: "CircleCI", prefix: "CCIPAT_", form: alnum + `{22}_[0-9a-f]{40}`, source: "circleci.com/docs/managing-api-tokens"},
	{kind: "ClickHouse Cloud", prefix: "4b1d", form: alnum + `{38}`, source: "gitleaks clickhouse-cloud-api-secret-key"},
	{kind: "Clojars", prefix: "CLOJARS_", form: alnum + `{60}`, source: "gitleaks clojars-api-token"},
	{kind: "Cloudflare origin CA", prefix: "v1.0-", form: `[0-9a-f]{24}-[0-9a-f]{146}`, source: "gitleaks cloudflare-origin-ca-key"},
	{kind: "Contentful", prefix: "CFPAT-", form: word + `{43}`, source: "contentful.com/developers/docs"},
	{kind: "Databricks", prefix: "dapi", form: `[0-9a-f]{32}(?:-\d)?`, source: "gitleaks databricks-api-token"},
	{kind: "Defined Networking", prefix: "dnkey-", form: `[0-9A-Za-z=_-]{26}-[0-9A-Za-z=_-]{52}`, source: "gitleaks defined-networking-api-token"},
	{kind: "DigitalOcean", prefix: "dop_v1_", form: `[0-9a-f]{64}`, source: "gitleaks digitalocean-pat"},
	{kind: "DigitalOcean", prefix: "doo_v1_", form: `[0-9a-f]{64}`, source: "gitleaks digitalocean-access-token"},
	{kind: "DigitalOcean", prefix: "dor_v1_", form: `[0-9a-f]{64}`, source: "gitleaks digitalocean-refresh-token"},
	{kind: "Discord webhook", prefix: "discord.com", form: `/api/webhooks/\d{15,20}/` + word + `{60,72}`, source: "discord.com/developers/docs/resources/webhook"},
	{kind: "Docker Hub", prefix: "dckr_pat_", form: word + `{27}`, source: "docs.docker.com/security/access-tokens"},
	{kind: "Docker Hub", prefix: "dckr_oat_", form: word + `{32}`, source: "docs.docker.com/security/access-tokens"},
	{kind: "Doppler", prefix: "dp.", form: `(?:pt|st|ct|sa|scim|audit)(?:\.[a-z0-9_-]{2,35})?\.` + alnum + `{40,44}`, source: "gitleaks doppler-api-token"},
	{kind: "Dropbox", prefix: "sl.", form: `[0-9A-Za-z=_-]{130,152}`, source: "gitleaks dropbox-short-lived-api-token"},
	{kind: "Duffel", prefix: "duffel_", form: `(?:test|live)_[0-9A-Za-z_=-]{43}`, source: "gitleaks duffel-api-token"},
	{kind: "Dynatrace", prefix: "dt0c01.", form: alnum + `{24}\.` + alnum + `{64}`, source: "gitleaks dynatrace-api-token"},
	{kind: "EasyPost", prefix: "EZAK", form: alnum + `{54}`, source: "gitleaks easypost-api-token"},
	{kind: "EasyPost", prefix: "EZTK", form: alnum + `{54}`, source: "gitleaks easypost-test-api-token"},
	{kind: "Facebook", prefix: "EAAM", form: alnum + `{100,}`, source: "gitleaks facebook-page-access-token"},
	{kind: "Facebook", prefix: "EAAC", form: alnum + `{100,}`, source: "gitleaks facebook-page-access-token"},
	{kind: "Figma", prefix: "figd_", form: word + `{40}`, source: "figma.com/developers/api"},
	{kind: "Flutterwave", prefix: "FLWSECK_TEST-", form: `[0-9a-hA-H]{12}(?:[0-9a-hA-H]{20}-X)?`, source: "gitleaks flutterwave-secret-key, flutterwave-encryption-key"},
	{kind: "Flutterwave", prefix: "FLWPUBK_TEST-", form: `[0-9a-hA-H]{32}-X`, source: "gitleaks flutterwave-public-key"},
	{kind: "Fly.io", prefix: "fo1_", form: word + `{43}`, source: "gitleaks flyio-access-token"},
	{kind: "Fly.io", prefix: "fm1", form: `[ar]_` + b64 + `{100,}`, source: "gitleaks flyio-access-token"},
	{kind: "Fly.io", prefix: "fm2_", form: b64 + `{100,}`, source: "gitleaks flyio-access-token"},
	{kind: "Frame.io", prefix: "fio-u-", form: `[0-9A-Za-z_=-]{64}`, source: "gitleaks frameio-api-token"},
	{kind: "GitHub", prefix: "ghp_", form: alnum + `{36}`, source: "gitleaks github-pat; detect-secrets github_token"},
	{kind: "GitHub", prefix: "gho_", form: alnum + `{36}`, source: "gitleaks github-oauth"},
	{kind: "GitHub", prefix: "ghu_", form: alnum + `{36}`, source: "gitleaks github-app-token"},
	{kind: "GitHub", prefix: "ghs_", form: alnum + `{36}`, source: "gitleaks github-app-token"},
	{kind: "GitHub", prefix: "ghr_", form: alnum + `{36}(?:` + alnum + `{40})?`, source: "gitleaks github-refresh-token"},
	{kind: "GitHub", prefix: "github_pat_", form: `\w{82}`, source: "gitleaks github-fine-grained-pat"},
	{kind: "GitLab", prefix: "glpat-", form: word + `{20,300}(?:\.[0-9a-z]{2}[0-9a-z]{7})?`, source: "gitleaks gitlab-pat, gitlab-pat-routable; detect-secrets gitlab_token"},
	{kind: "GitLab", prefix: "glcbt-", form: alnum + `{1,5}_` + word + `{20}`, source: "gitleaks gitlab-cicd-job-token"},
	{kind: "GitLab", prefix: "gldt-", form: word + `{20}`, source: "gitleaks gitlab-deploy-token"},
	{kind: "GitLab", prefix: "glffct-", form: word + `{20}`, source: "gitleaks gitlab-feature-flag-client-token"},
	{kind: "GitLab", prefix: "glft-", form: word + `{20}`, source: "gitleaks gitlab-feed-token"},
	{kind: "GitLab", prefix: "glimt-", form: word + `{25}`, source: "gitleaks gitlab-incoming-mail-token"},
	{kind: "GitLab", prefix: "glagent-", form: word + `{50}`, source: "gitleaks gitlab-kubernetes-agent-token"},
	{kind: "GitLab", prefix: "gloas-", form: word + `{64}`, source: "gitleaks gitlab-oauth-app-secret"},
	{kind: "GitLab", prefix: "glptt-", form: `[0-9a-f]{40}`, source: "gitleaks gitlab-ptt"},
	{kind: "GitLab", prefix: "GR1348941", form: word + `{20}`, source: "gitleaks gitlab-rrt"},
	{kind: "GitLab", prefix: "glrt-", form: `(?:t\d_)?` + word + `{20,300}(?:\.[0-9a-z]{9})?`, source: "gitleaks gitlab-runner-authentication-token, gitlab-runner-authentication-token-routable"},
	{kind: "GitLab", prefix: "glsoat-", form: word + `{20}`, source: "gitleaks gitlab-scim-token"},
	{kind: "GitLab session", prefix: "_gitlab_session=", form: `[0-9a-z]{32}`, source: "gitleaks gitlab-session-cookie"},
	{kind: "Google API key", prefix: "AIza", form: word + `{35}`, source: "gitleaks gcp-api-key; detect-secrets gcp_key"},
	{kind: "Google OAuth", prefix: "GOCSPX-", form: word + `{28}`, source: "developers.google.com/identity/protocols/oauth2"},
	{kind: "Google OAuth", prefix: "ya29.", form: word + `{30,}`, source: "developers.google.com/identity/protocols/oauth2"},
	{kind: "Grafana", prefix: "eyJrIjoi", form: alnum + `{70,400}`, source: "gitleaks grafana-api-key"},
	{kind: "Grafana", prefix: "glc_", form: b64 + `{32,400}`, source: "gitleaks grafana-cloud-api-token"},
	{kind: "Grafana", prefix: "glsa_", form: alnum + `{32}_` + hexed + `{8}`, source: "gitleaks grafana-service-account-token"},
	{kind: "Groq", prefix: "gsk_", form: alnum + `{52}`, source: "console.groq.com/docs"},
	{kind: "Harness", prefix: "pat.", form: word + `{22}\.` + alnum + `{24}\.` + alnum + `{20}`, source: "gitleaks harness-api-key"},
	{kind: "Harness", prefix: "sat.", form: word + `{22}\.` + alnum + `{24}\.` + alnum + `{20}`, source: "gitleaks harness-api-key"},
	{kind: "Terraform", prefix: "atlasv1.", form: `[0-9A-Za-z_=-]{60,70}`, source: "gitleaks hashicorp-tf-api-token"},
	{kind: "Heroku", prefix: "HRKU-", form: `AA` + word + `{58}`, source: "gitleaks heroku-api-key-v2"},
	{kind: "Hugging Face", prefix: "hf_", form: `[A-Za-z0-9]{34}`, source: "gitleaks huggingface-access-token"},
	{kind: "Hugging Face", prefix: "api_org_", form: `[A-Za-z0-9]{34}`, source: "gitleaks huggingface-organization-api-token"},
	{kind: "Infracost", prefix: "ico-", form: alnum + `{32}`, source: "gitleaks infracost-api-token"},
	{kind: "instant-env service", prefix: "ie_", form: alnum + `{49}`, source: "instant_env/service/tokens.py"},
	{kind: "Intra 42", prefix: "s-s4t2", form: `(?:ud|af)-[0-9a-f]{64}`, source: "gitleaks intra42-client-secret"},
	{kind: "JSON web token", prefix: "eyJ", form: `[0-9A-Za-z_=-]{14,}\.eyJ?[0-9A-Za-z/\\_-]{16,}\.[0-9A-Za-z/\\_-]{10,}`, source: "gitleaks jwt, jwt-base64; detect-secrets jwt"},
	{kind: "minisign secret key", prefix: "RWRTY0Iy", form: b64 + `{100,}`, source: "format of minisign"},
	{kind: "signify secret key", prefix: "RWRCS", form: b64 + `{100,}`, source: "signify(1)"},
	{kind: "PuTTY private key", prefix: "PuTTY-User-Key-File-", form: `[123]`, source: "PuTTY's manual, appendix C", check: isPuTTY},
	{kind: "Tor service's secret key", prefix: "ed25519v1-secret:", form: ``, source: "tor's format of onion services", check: isTor},
	{kind: "Linear", prefix: "lin_api_", form: alnum + `{40}`, source: "gitleaks linear-api-key"},
	{kind: "Mailgun", prefix: "key-", form: `[0-9a-f]{32}`, source: "gitleaks mailgun-private-api-token"},
	{kind: "Mailgun", prefix: "pubkey-", form: `[0-9a-f]{32}`, source: "gitleaks mailgun-pub-key"},
	{kind: "Mapbox", prefix: "pk.", form: `[0-9A-Za-z]{60}\.[0-9A-Za-z]{22}`, source: "gitleaks mapbox-api-token"},
	{kind: "Mapbox", prefix: "sk.eyJ", form: `[0-9A-Za-z_-]{50,}\.` + word + `{20,}`, source: "docs.mapbox.com/api/accounts/tokens"},
	{kind: "Netlify", prefix: "nfp_", form: alnum + `{36}`, source: "docs.netlify.com/api/get-started"},
	{kind: "New Relic", prefix: "NRJS-", form: `[0-9a-f]{19}`, source: "gitleaks new-relic-browser-api-token"},
	{kind: "New Relic", prefix: "NRII-", form: `[0-9A-Za-z-]{32}`, source: "gitleaks new-relic-insert-key"},
	{kind: "New Relic", prefix: "NRAK-", form: `[0-9A-Za-z]{27}`, source: "gitleaks new-relic-user-api-key"},
	{kind: "Notion", prefix: "ntn_", form: `\d{11}` + alnum + `{35}`, source: "gitleaks notion-api-token"},
	{kind: "npm", prefix: "npm_", form: alnum + `{36}`, source: "gitleaks npm-access-token; detect-secrets npm"},
	{kind: "Octopus Deploy", prefix: "API-", form: `[A-Z0-9]{26}`, source: "gitleaks octopus-deploy-api-key"},
	{kind: "OpenAI", prefix: "sk-", form: `(?:(?:proj|svcacct|admin)-)?` + word + `{20,74}T3BlbkFJ` + word + `{20,74}`, source: "gitleaks openai-api-key; detect-secrets openai"},
	{kind: "OpenShift", prefix: "sha256~", form: word + `{43}`, source: "gitleaks openshift-user-token"},
	{kind: "Perplexity", prefix: "pplx-", form: alnum + `{48}`, source: "gitleaks perplexity-api-key"},
	{kind: "Plaid", prefix: "access-", form: `(?:sandbox|development|production)-` + uuid, source: "gitleaks plaid-api-token"},
	{kind: "PlanetScale", prefix: "pscale_", form: `(?:tkn|oauth|pw)_[\w=.-]{32,64}`, source: "gitleaks planetscale-api-token, planetscale-oauth-token, planetscale-password"},
	{kind: "Postman", prefix: "PMAK-", form: `[0-9A-Fa-f]{24}-[0-9A-Fa-f]{34}`, source: "gitleaks postman-api-token"},
	{kind: "Prefect", prefix: "pnu_", form: alnum + `{36}`, source: "gitleaks prefect-api-token"},
	{kind: "Pulumi", prefix: "pul-", form: `[0-9a-f]{40}`, source: "gitleaks pulumi-api-token"},
	{kind: "PyPI", prefix: "pypi-AgEIcHlwaS5vcmc", form: word + `{50,1000}`, source: "gitleaks pypi-upload-token; detect-secrets pypi_token"},
	{kind: "PyPI", prefix: "pypi-AgENdGVzdC5weXBpLm9yZw", form: word + `{50,1000}`, source: "detect-secrets pypi_token"},
	{kind: "ReadMe", prefix: "rdme_", form: `[0-9a-z]{70}`, source: "gitleaks readme-api-token"},
	{kind: "Replicate", prefix: "r8_", form: alnum + `{37}`, source: "replicate.com/docs/reference/http"},
	{kind: "RubyGems", prefix: "rubygems_", form: `[0-9a-f]{48}`, source: "gitleaks rubygems-api-token"},
	{kind: "Scalingo", prefix: "tk-us-", form: word + `{48}`, source: "gitleaks scalingo-api-token"},
	{kind: "SendGrid", prefix: "SG.", form: `[0-9A-Za-z=_.-]{66}`, source: "gitleaks sendgrid-api-token; detect-secrets sendgrid"},
	{kind: "Brevo", prefix: "xkeysib-", form: `[0-9a-f]{64}-` + alnum + `{16}`, source: "gitleaks sendinblue-api-token"},
	{kind: "Sentry", prefix: "sntrys_eyJpYXQiO", form: b64 + `{10,400}={0,2}_` + b64 + `{43}`, source: "gitleaks sentry-org-token"},
	{kind: "Sentry", prefix: "sntryu_", form: `[0-9a-f]{64}`, source: "gitleaks sentry-user-token"},
	{kind: "SettleMint", prefix: "sm_", form: `[aps]at_` + alnum + `{16}`, source: "gitleaks settlemint-application-access-token, settlemint-personal-access-token, settlemint-service-access-token"},
	{kind: "Shippo", prefix: "shippo_", form: `(?:live|test)_` + hexed + `{40}`, source: "gitleaks shippo-api-token"},
	{kind: "Shopify", prefix: "shpat_", form: hexed + `{32}`, source: "gitleaks shopify-access-token"},
	{kind: "Shopify", prefix: "shpca_", form: hexed + `{32}`, source: "gitleaks shopify-custom-access-token"},
	{kind: "Shopify", prefix: "shppa_", form: hexed + `{32}`, source: "gitleaks shopify-private-app-access-token"},
	{kind: "Shopify", prefix: "shpss_", form: hexed + `{32}`, source: "gitleaks shopify-shared-secret"},
	{kind: "Slack", prefix: "xapp-", form: `\d-[0-9A-Za-z]+-\d+-[0-9A-Za-z]+`, source: "gitleaks slack-app-token"},
	{kind: "Slack", prefix: "xoxb-", form: `\d{8,14}-` + word + `{18,}`, source: "gitleaks slack-bot-token, slack-legacy-bot-token; detect-secrets slack"},
	{kind: "Slack", prefix: "xoxe.xox", form: `[bp]-\d-[0-9A-Za-z]{163,166}`, source: "gitleaks slack-config-access-token"},
	{kind: "Slack", prefix: "xoxe-", form: `(?:\d-[0-9A-Za-z]{146}|(?:\d{10,13}-){3}` + word + `{28,34})`, source: "gitleaks slack-config-refresh-token, slack-user-token"},
	{kind: "Slack", prefix: "xoxp-", form: `(?:\d{10,13}-){2,3}` + word + `{24,34}`, source: "gitleaks slack-user-token"},
	{kind: "Slack", prefix: "xoxo-", form: `\d+-\d+-\d+-` + hexed + `+`, source: "gitleaks slack-legacy-token"},
	{kind: "Slack", prefix: "xoxs-", form: `\d+-\d+-\d+-` + hexed + `+`, source: "gitleaks slack-legacy-token"},
	{kind: "Slack", prefix: "xoxa-", form: `(?:\d-)?[0-9A-Za-z-]{10,60}`, source: "gitleaks slack-legacy-workspace-token"},
	{kind: "Slack", prefix: "xoxr-", form: `(?:\d-)?[0-9A-Za-z-]{10,60}`, source: "gitleaks slack-legacy-workspace-token"},
	{kind: "Slack webhook", prefix: "hooks.slack.com", form: `/(?:services|workflows|triggers)/[0-9A-Za-z+/]{43,56}`, source: "gitleaks slack-webhook-url"},
	{kind: "SonarQube", prefix: "sq", form: `[pua]_[0-9a-f]{40}`, source: "gitleaks sonar-api-token"},
	{kind: "Sourcegraph", prefix: "sgp_", form: `(?:(?:` + hexed + `{16}|local)_)?` + hexed + `{40}`, source: "gitleaks sourcegraph-access-token"},
	{kind: "Square", prefix: "EAAA", form: word + `{22,60}`, source: "gitleaks square-access-token"},
	{kind: "Square", prefix: "sq0atp-", form: word + `{22,60}`, source: "gitleaks square-access-token"},
	{kind: "Square", prefix: "sq0csp-", form: word + `{43}`, source: "detect-secrets square_oauth"},
	{kind: "Stripe", prefix: "sk_", form: `(?:test|live|prod)_[0-9A-Za-z]{10,247}`, source: "gitleaks stripe-access-token; detect-secrets stripe"},
	{kind: "Stripe", prefix: "rk_", form: `(?:test|live|prod)_[0-9A-Za-z]{10,247}`, source: "gitleaks stripe-access-token; detect-secrets stripe"},
	{kind: "Stripe webhook", prefix: "whsec_", form: `[0-9A-Za-z+/]{32,}`, source: "docs.stripe.com/webhooks"},
	{kind: "Supabase", prefix: "sbp_", form: `[0-9a-f]{40}`, source: "supabase.com/docs/reference/api"},
	{kind: "Tailscale", prefix: "tskey-", form: `[a-z]+-[0-9A-Za-z]{8,20}-[0-9A-Za-z]{20,40}`, source: "tailscale.com/kb/1085"},
	{kind: "Microsoft Teams webhook", prefix: "webhook.office.com", form: `/webhookb2/` + uuid + `@` + uuid + `/IncomingWebhook/[0-9a-z]{32}/` + uuid, source: "gitleaks microsoft-teams-webhook"},
	{kind: "Twilio", prefix: "SK", form: hexed + `{32}`, source: "gitleaks twilio-api-key; detect-secrets twilio"},
	{kind: "Typeform", prefix: "tfp_", form: `[0-9A-Za-z_.=-]{59}`, source: "gitleaks typeform-api-token"},
	{kind: "Vault", prefix: "hvs.", form: word + `{90,120}`, source: "gitleaks vault-service-token; detect-secrets hashicorp_vault_token"},
	{kind: "Vault", prefix: "hvb.", form: word + `{138,300}`, source: "gitleaks vault-batch-token"},
	{kind: "Vault", prefix: "s.", form: alnum + `{24}`, source: "gitleaks vault-service-token", check: mixes},
	{kind: "Yandex", prefix: "t1.", form: `[A-Z0-9a-z_-]+={0,2}\.[A-Z0-9a-z_-]{86}={0,2}`, source: "gitleaks yandex-access-token"},
	{kind: "Yandex", prefix: "AQVN", form: word + `{35,38}`, source: "gitleaks yandex-api-key"},
})

const (
	uuid     = `[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`
	authress = alnum + `{5,30}\.` + alnum + `{4,6}\.acc[_-][0-9A-Za-z-]{10,32}\.[0-9A-Za-z+/_=-]{30,120}`
)

func compile(table []token) []token {
	for i := range table {
		form := `\A(?:` + table[i].form + `)`
		table[i].compiled = sync.OnceValue(func() *regexp.Regexp {
			expression := regexp.MustCompile(form)
			expression.Longest()
			return expression
		})
	}
	return table
}

func (t *token) rule() string {
	if strings.HasPrefix(t.kind, "AWS") {
		return "aws-credentials"
	}
	if strings.HasSuffix(t.kind, "secret key") && t.source != "gitleaks 1password-secret-key" || strings.HasSuffix(t.kind, "private key") {
		return "private-key"
	}
	return "token"
}

// maxToken is the longest token that is compared; longer ones match with their start.
const maxToken = 1200

// judge is called at the prefix, and returns the whole, without escapes.
func (t *token) judge(window []byte, at int) (text []byte, found bool) {
	behind := window[at+len(t.prefix) : min(len(window), at+len(t.prefix)+maxToken)]
	form := t.match(behind)
	if form == nil && t.mayBeEscaped(behind) {
		form = t.match(plain(behind))
	}
	if form == nil {
		return nil, false
	}
	text = slices.Concat([]byte(t.prefix), form)
	if t.check != nil {
		return text, t.check(window, at, len(text))
	}
	return text, !isPlaceholder(form) && entropy(form) >= leastEntropy(len(form))
}

// match returns the start of the text that has the form, when it ends there.
func (t *token) match(text []byte) []byte {
	place := t.compiled().FindIndex(text)
	if place == nil || place[1] < len(text) && is(text[place[1]], wordByte) && place[1] < maxToken-1 {
		return nil
	}
	return text[:place[1]]
}

// mayBeEscaped: forms with a slash, a plus or an equals sign have them escaped in JSON and URLs.
func (t *token) mayBeEscaped(text []byte) bool {
	end := 0
	for end < len(text) && is(text[end], runByte) {
		end++
	}
	return bytes.ContainsAny(text[:end], "\\%")
}

// leastEntropy is in bits per character: what nearly all random texts of hexadecimal digits have, and no repetition.
func leastEntropy(length int) float64 {
	if length < 20 {
		return 2.2
	}
	return 2.6
}

// entropy is Shannon's, in bits per character.
func entropy(text []byte) (bits float64) {
	var counts [256]int
	for _, c := range text {
		counts[c]++
	}
	for _, count := range counts {
		if count > 0 {
			p := float64(count) / float64(len(text))
			bits -= p * math.Log2(p)
		}
	}
	return bits
}

var placeholders = []string{
	"xxxxxx", "example", "your_", "your-", "yourtoken", "yourkey", "yoursecret", "yourpass", "yourapi", "youraccess", "0123456789", "1234567890", "abcdefgh",
	"abcd1234", "placeholder", "redacted", "changeme", "....", "deadbeef", "****",
}

// isPlaceholder tells documentation's stand-ins from secrets: none of these texts is in a random one but by a chance of
// less than one in 10^5, which takes five characters or more.
func isPlaceholder(text []byte) bool {
	lower := strings.ToLower(string(text[:min(len(text), 64)]))
	for _, p := range placeholders {
		if strings.Contains(lower, p) {
			return true
		}
	}
	return false
}

// mixes wants upper case, lower case and two digits, one of them within: method names have none there.
func mixes(window []byte, at, length int) bool {
	text := window[at+2 : at+length]
	within := bytes.TrimRight(text, "0123456789")
	digits := 0
	for _, c := range text {
		if c >= '0' && c <= '9' {
			digits++
		}
	}
	return digits >= 2 && hasDigit(within) && looksRandom(text, 14) && !isPlaceholder(text) && (at == 0 || window[at-1] != '.' && window[at-1] != '_')
}

// judgeMailchimp is called at the end of a run, where the data centre is, -us and a number; before it are 32 hexadecimal
// digits.
func (m *Matcher) judgeMailchimp(window []byte, end, from, to int, report func(Hit)) {
	const digits = 32
	at := end
	for end-at < 3 && at > 0 && window[at-1] >= '0' && window[at-1] <= '9' {
		at--
	}
	if at == end || end-at > 2 || at < digits+3 || string(window[at-3:at]) != "-us" {
		return
	}
	start := at - 3 - digits
	key := window[start : at-3]
	if start < from || start >= to || start > 0 && is(window[start-1], wordByte) && !escaped(window, start) {
		return
	}
	for _, c := range key {
		if !is(c, hexByte) {
			return
		}
	}
	if entropy(key) >= 2.6 && !isPlaceholder(key) {
		report(Hit{"token", "Mailchimp", fingerprint(key), int64(start)})
	}
}

// isSAS wants what a shared access signature has besides: its version and its end.
func isSAS(window []byte, at, length int) bool {
	url := string(window[max(0, at-400):min(len(window), at+length+400)])
	return strings.Contains(url, "sv=20") && strings.Contains(url, "se=20") && entropy(window[at+4:at+length]) >= 4
}
